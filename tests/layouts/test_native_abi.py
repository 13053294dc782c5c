"""The C entry itself: any strides are followed to the byte; what it finds wrong is in test_native_refusals.py."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import Geometry, convert, native
from tests.layouts.abi_calls import Call, RandomCall, library, run
from tests.layouts.engine_pools import EnginePool
from tests.layouts.kernel_sets import cpu_kernels

ROOT = Path(__file__).parents[2]


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_any_strides(seed: int) -> None:
    """Every byte of the target's memory, those that nobody owns among them, with all kernels, cached and streamed."""
    call = RandomCall(seed)
    wanted, source = call.wanted(), call.ends[0].memory.copy()
    for which in cpu_kernels():
        for stream_bytes in (0, 1):
            memory = call.ends[1].memory.copy()
            assert run(call.plan(memory, kernels=native.KERNELS[which], stream_bytes=stream_bytes)) == 0
            assert np.array_equal(memory, wanted), f"kernels {which}, {stream_bytes=}"
    assert np.array_equal(call.ends[0].memory, source), "the source was written"


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", [1, 5, 8])
def test_threads(seed: int, threads: int) -> None:
    """Large enough that the work is really shared out; the tokens don't divide evenly."""
    call = RandomCall(seed, tokens=6007, heads=8)
    memory = call.ends[1].memory.copy()
    assert run(call.plan(memory, threads=threads)) == 0
    assert np.array_equal(memory, call.wanted())


def test_the_right_call() -> None:
    call = Call()
    assert run(call.plan) == 0
    source = call.source.reshape(2, 2, 3, 4, 8)
    wanted = np.zeros((2, 2, 3, 8, 8), np.uint16)
    wanted[:, 0] = np.concatenate([source[:, 1], source[:, 0]], axis=2)
    assert np.array_equal(call.target.reshape(wanted.shape), wanted)


def test_a_null_plan_and_every_message() -> None:
    assert library().kvl_convert(None) == 1
    messages = {library().kvl_message(code) for code in range(11)}
    assert len(messages) == 11
    assert library().kvl_message(-5) == library().kvl_message(11) == b"unknown error"


STRUCTS = {
    "kvl_view": native.Tokens,
    "kvl_axis": native.Axis,
    "kvl_side": native.Side,
    "kvl_plane": native.Plane,
    "kvl_plan": native.CPlan,
}


def test_the_structures_are_the_headers(tmp_path: Path) -> None:
    """Compiled as C: what ctypes thinks of sizes and places is what a C compiler makes of the header."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    lines, wanted = [], []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        wanted.append(ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
            wanted.append(getattr(struct, field).offset)
    source = tmp_path / "sizes.c"
    body = "\n".join(lines)
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "kvlingua.h"\nint main(void) {{\n{body}\nreturn 0; }}'
    )
    program = tmp_path / "sizes"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in printed.split()] == wanted


def test_the_library_is_told_how_many_threads_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Library:
        def kvl_convert(self, call: native.CPlan) -> int:
            told.append(call.threads)
            return 0

    model = Geometry.kv(2, 3, 8, "float32")
    ours, theirs = EnginePool("hf", model, model.full, 5, 1), EnginePool("sglang_nhd", model, model.full, 1, 9)
    monkeypatch.setattr(native, "load", lambda path: native._Loaded(Library(), ""))
    for threads in (1, 3):
        convert(ours.pool().view([0], 0, 5), theirs.pool().view(range(5), 0, 5), threads=threads)
    assert told == [1, 3]
