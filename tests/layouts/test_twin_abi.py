"""The C entry of the kernels for GPUs, by their host twin: any strides, tables too long for one launch, refusals."""

from __future__ import annotations

import ctypes
import random
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import Buffer, Geometry, View, convert, format, gpu, native
from kvlingua.layouts.plan import make_plan
from tests.layouts.abi_calls import CAST, COPY, COPY_EQUAL, F32, Call, RandomCall
from tests.native import builds

UNSUPPORTED = 6  # KVL_UNSUPPORTED


@pytest.fixture
def library() -> ctypes.CDLL:
    twin = builds.twin()
    if twin is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    loaded = gpu.load(twin)
    assert loaded.library is not None, loaded.description
    assert loaded.library.kvl_gpu_platform() == b"host"
    return loaded.library


def run(library: ctypes.CDLL, plan: native.CPlan, verdict: ctypes.c_uint32 | None = None, **fields: int) -> int:
    """What kvl_gpu_convert returns."""
    call = gpu.Call(plan=ctypes.pointer(plan), **fields)
    call.verdict = ctypes.addressof(verdict) if verdict is not None else 0
    return int(library.kvl_gpu_convert(ctypes.byref(call)))


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    block_bytes=st.sampled_from((0, 1, 1 << 20)),
    blocks=st.sampled_from((0, 1, 5000)),
    piece_bytes=st.sampled_from((0, 1)),
)
def test_any_strides(seed: int, block_bytes: int, blocks: int, piece_bytes: int) -> None:
    """Every byte of the target's memory, those that nobody owns among them, with grid blocks of any size, and moved
    piece by piece as copy engines do."""
    twin = builds.twin()
    if twin is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    call = RandomCall(seed)
    memory, source = call.ends[1].memory.copy(), call.ends[0].memory.copy()
    library = gpu.load(twin).library
    assert library is not None
    assert run(library, call.plan(memory), block_bytes=block_bytes, blocks=blocks, piece_bytes=piece_bytes) == 0
    assert np.array_equal(memory, call.wanted())
    assert np.array_equal(call.ends[0].memory, source), "the source was written"


@pytest.mark.parametrize("seed", [1, 5, 8, 23])
def test_tables_for_one_large_launch_and_for_several(library: ctypes.CDLL, seed: int) -> None:
    """Slots of single tokens are the longest tables there are."""
    call = RandomCall(seed, tokens=20011, heads=2)
    memory = call.ends[1].memory.copy()
    assert run(library, call.plan(memory)) == 0
    assert np.array_equal(memory, call.wanted())


@pytest.mark.parametrize("seed", range(12))
def test_grids_that_are_cut(library: ctypes.CDLL, seed: int) -> None:
    """The twin whose launches have fewer than 7 grid blocks, in place of fewer than 2^24 - 1. What one grid block can't
    be cut out of is refused, by name; else every byte is right."""
    twin = builds.twin()
    assert twin is not None
    small = gpu.load(twin.with_name("libkvlingua_twin_of_small_grids.so")).library
    assert small is not None
    call = RandomCall(seed, tokens=97)
    before, memory = call.ends[1].memory.copy(), call.ends[1].memory.copy()
    code = run(small, call.plan(memory), block_bytes=1, blocks=5000)
    if code == UNSUPPORTED:
        assert np.array_equal(memory, before)
    else:
        assert code == 0
        assert np.array_equal(memory, call.wanted())


@pytest.mark.parametrize("where", [0, 1, 9999, 10005, 19999, 20010])
def test_values_that_differ_across_launches(library: ctypes.CDLL, where: int) -> None:
    """A value for each of the source's blocks, of which one block of the target gets all: from `where` on another."""
    tokens = 20011
    source, target = np.ones(tokens, np.float32), np.zeros(1, np.float32)
    source[where:] = 2
    bases = [array("Q", [memory.ctypes.data]) for memory in (source, target)]
    spans = [array("Q", [memory.ctypes.data, memory.ctypes.data + memory.nbytes]) for memory in (source, target)]
    tables = [array("q", range(tokens)), array("q", [0])]
    planes = (native.Plane * 1)()
    plane = planes[0]
    plane.op, plane.once, plane.source_type, plane.target_type = COPY, 1, F32, F32
    plane.factor, plane.heads, plane.dims = 1.0, 1, 1
    plane.dim[0] = native.Axis(1, 4, 4)
    plane.source, plane.target = (native.Side(base.buffer_info()[0], 4) for base in bases)
    views = [
        native.Tokens(table.buffer_info()[0], len(table), len(table), page, 0, span.buffer_info()[0], 1)
        for table, page, span in zip(tables, (1, tokens), spans, strict=True)
    ]
    plan = native.CPlan(1, 0, 0, tokens, 1, 1, 1, planes, *views)
    verdict = ctypes.c_uint32(0)
    assert run(library, plan, verdict) == 0
    assert (verdict.value, target[0]) == ((0, 2) if where == 0 else (native.SCALES, 0))


def test_a_right_call(library: ctypes.CDLL) -> None:
    call = Call()
    assert run(library, call.plan) == 0
    wanted = Call()
    assert native.load(native.library_path()).library.kvl_convert(wanted.plan) == 0  # type: ignore[union-attr]
    assert np.array_equal(call.target, wanted.target)


def test_a_bad_block_is_caught_before_launch(library: ctypes.CDLL) -> None:
    call = Call()
    call.tables[0][1] = 2
    assert run(library, call.plan) == 4
    assert not call.target.any()


@pytest.mark.parametrize("fields", [{"reserved": 1}, {"device": -1}, {"block_bytes": -1}, {"blocks": -1}])
def test_fields_out_of_range(library: ctypes.CDLL, fields: dict[str, int]) -> None:
    call = Call()
    assert run(library, call.plan, **fields) == 2
    assert not call.target.any()


def test_scales_that_differ_are_a_verdict_and_nothing_is_written(library: ctypes.CDLL) -> None:
    call, verdict = Call(), ctypes.c_uint32(0)
    call.with_scales(COPY_EQUAL)
    assert run(library, call.plan) == 1, "a plan that compares needs a place for its verdict"
    assert run(library, call.plan, verdict) == 0
    assert (verdict.value, call.target.any()) == (0, True)
    call.target[:] = 0
    call.scales[1] = 2
    assert run(library, call.plan, verdict) == 0
    assert (verdict.value, call.target.any()) == (native.SCALES, False)


def test_what_compares_is_refused_while_its_stream_is_captured(library: ctypes.CDLL) -> None:
    """To the twin all streams but the default one are. Nothing else is refused."""
    call, verdict = Call(), ctypes.c_uint32(0)
    call.with_scales(COPY_EQUAL)
    code = run(library, call.plan, verdict, stream=8)
    assert b"captured" in library.kvl_gpu_message(code)
    assert (verdict.value, call.target.any()) == (0, False)
    plain = Call()
    assert run(library, plain.plan, stream=8) == 0
    assert plain.target.any()


MODEL = Geometry.kv(2, 3, 16, "bfloat16")


def chunks(memory: bytearray, layout: str, buffers: int) -> View:
    """4 chunks of 8 tokens, the blocks 2, 3, 0 of them, in so many buffers that follow each other."""
    whole, size = Buffer.of(memory), len(memory) // buffers
    parts = [Buffer(whole.pointer + i * size, size, whole.owner) for i in range(buffers)]
    pool = format(layout).pool(MODEL, MODEL.full, page=8, blocks=4, buffers=parts)
    return pool.view([2, 3, 0], 0, 24)


@pytest.mark.parametrize(
    ("layout", "buffers", "least", "pieces"),
    [
        ("canonical", 1, 1, 2),  # blocks 2 and 3 follow each other, all heads, layers and planes of them too
        ("canonical", 1, MODEL.block_bytes(MODEL.full, 8), 2),
        ("canonical", 1, MODEL.block_bytes(MODEL.full, 8) + 1, 0),  # block 0 alone is too small
        ("vllm_lbnhc", 2, 1, 4),  # layers are next to each other here, but they needn't be one allocation
    ],
)
def test_pieces_that_follow_each_other_are_one(
    library: ctypes.CDLL, layout: str, buffers: int, least: int, pieces: int
) -> None:
    nbytes = 4 * MODEL.block_bytes(MODEL.full, 8)
    source, target = bytearray(random.Random(1).randbytes(nbytes)), bytearray(nbytes)
    plan = make_plan(chunks(source, layout, buffers), chunks(target, layout, buffers))
    told, count = native.call(plan), ctypes.c_int64(-1)
    call = gpu.Call(plan=ctypes.pointer(told), piece_bytes=least)
    assert library.kvl_gpu_pieces(ctypes.byref(call), ctypes.byref(count)) == 0
    assert count.value == pieces
    assert run(library, told, piece_bytes=least) == 0
    wanted = bytearray(nbytes)
    convert(plan.source, chunks(wanted, layout, buffers), backend="torch")
    assert target == wanted


def test_a_cast_needs_no_verdict(library: ctypes.CDLL) -> None:
    call = Call()
    call.with_scales(CAST)
    assert run(library, call.plan) == 0
    assert call.target.any()


def test_messages(library: ctypes.CDLL) -> None:
    messages = {library.kvl_gpu_message(code) for code in range(11)}
    assert len(messages) == 11
    assert library.kvl_gpu_message(1001) == b"unknown error"
    assert library.kvl_gpu_convert(None) == 1


def test_the_structure_is_the_headers(tmp_path: Path) -> None:
    """Compiled as C; the others are compared in test_native_abi.py."""
    import shutil
    import subprocess

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    fields = [name for name, _ in gpu.Call._fields_]
    lines = [f'printf("%zu\\n", offsetof(kvl_gpu_call, {name}));' for name in fields]
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    body = "\n".join(['printf("%zu\\n", sizeof(kvl_gpu_call));', *lines])
    header = '#include <stddef.h>\n#include <stdio.h>\n#include "kvlingua_gpu.h"\n'
    source.write_text(f"{header}int main(void) {{\n{body}\nreturn 0; }}")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{Path(__file__).parents[2] / 'csrc'}"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    wanted = [ctypes.sizeof(gpu.Call), *(getattr(gpu.Call, name).offset for name in fields)]
    assert [int(line) for line in printed.split()] == wanted
