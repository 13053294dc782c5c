"""What the C entry finds wrong: every return code with each of its causes, and nothing is written."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvlingua.layouts import native
from tests.layouts.abi_calls import BYTE, CAST, COPY, COPY_EQUAL, E4M3FN, E5M2, F16, F32, QUANTISE, Call, run
from tests.layouts.kernel_sets import cpu_kernels

ROOT = Path(__file__).parents[2]
NULL, SIZE, STRIDE, TABLE, MEMORY, UNSUPPORTED, SPAN, TWICE, OVERLAP, SCALES = range(1, 11)


@pytest.mark.parametrize("op", [COPY, COPY_EQUAL, CAST])
def test_the_right_calls_with_scales(op: int) -> None:
    """The controls of the calls with wrong scales below."""
    call = Call()
    call.with_scales(op)
    assert run(call.plan) == 0
    assert call.target.any()


def many_layers(call: Call) -> None:
    call.bases[0] = array("Q", list(call.bases[0]) * (1 << 16))
    call.planes[0].source.base = call.bases[0].buffer_info()[0]
    call.plan.layers = len(call.bases[0])


def into_itself(call: Call) -> None:
    """The target where the source is, of which it knows."""
    call.plan.target.span = call.plan.source.span
    call.plan.target.blocks = 1
    call.bases[1][0], call.bases[1][1] = call.bases[0][1] - 96, call.bases[0][1]
    call.plan.layers, call.plan.tokens = 1, 4
    call.plan.target.page, call.planes[0].target.head = 4, 64


BIG = 1 << 62

WRONG: list[tuple[Callable[[Call], object], int]] = [
    (lambda c: setattr(c.plan, "plane", None), NULL),
    (lambda c: setattr(c.planes[0].source, "base", None), NULL),
    (lambda c: setattr(c.planes[0].target, "base", None), NULL),
    (lambda c: c.bases[0].__setitem__(1, 0), NULL),
    (lambda c: setattr(c.plan.source, "table", None), NULL),
    (lambda c: setattr(c.plan.target, "table", None), NULL),
    (lambda c: setattr(c.plan.source, "span", None), NULL),
    (lambda c: (c.with_scales(COPY_EQUAL), setattr(c.planes[0].source_scale, "base", None)), NULL),
    (lambda c: (c.with_scales(COPY_EQUAL), setattr(c.planes[0].target_scale, "base", None)), NULL),
    (lambda c: (c.with_scales(QUANTISE, F16, E5M2), setattr(c.planes[0].target_scale, "base", None)), NULL),
    (lambda c: (c.with_scales(CAST), c.scale_bases[0].__setitem__(1, 0)), NULL),
    (lambda c: setattr(c.plan, "threads", 0), SIZE),
    (lambda c: setattr(c.plan, "threads", 1 << 20), SIZE),
    (lambda c: setattr(c.plan, "stream_bytes", -1), SIZE),
    (lambda c: setattr(c.plan, "tokens", -1), SIZE),
    (lambda c: setattr(c.plan, "tokens", BIG), SIZE),
    (lambda c: setattr(c.plan, "heads", 0), SIZE),
    (lambda c: setattr(c.plan, "heads", 2), SIZE),
    (lambda c: setattr(c.plan, "layers", -2), SIZE),
    (lambda c: many_layers(c), SIZE),
    (lambda c: setattr(c.plan, "planes", 0), SIZE),
    (lambda c: setattr(c.plan, "planes", 1 << 39), SIZE),
    (lambda c: setattr(c.planes[0], "heads", 0), SIZE),
    (lambda c: setattr(c.planes[0], "heads", 2), SIZE),
    (lambda c: setattr(c.planes[0], "dims", 0), SIZE),
    (lambda c: setattr(c.planes[0], "dims", 5), SIZE),
    (lambda c: c.axis(size=0), SIZE),
    (lambda c: c.axis(size=BIG), SIZE),
    (lambda c: c.axis(size=1 << 39), SIZE),
    (lambda c: setattr(c.planes[0], "op", 4), SIZE),
    (lambda c: setattr(c.planes[0], "op", -1), SIZE),
    (lambda c: setattr(c.planes[0], "source_type", 0), SIZE),
    (lambda c: setattr(c.planes[0], "target_type", 8), SIZE),
    (lambda c: setattr(c.planes[0], "target_type", F32), SIZE),
    (lambda c: setattr(c.planes[0], "once", 2), SIZE),
    (lambda c: (c.with_scales(COPY_EQUAL), setattr(c.planes[0], "once", 1)), SIZE),
    (lambda c: setattr(c.planes[0], "reserved", 1), SIZE),
    (lambda c: c.with_scales(COPY_EQUAL, F16, E5M2), SIZE),
    (lambda c: c.with_scales(CAST, F16, BYTE), SIZE),
    (lambda c: c.with_scales(CAST, BYTE, F16), SIZE),
    (lambda c: c.with_scales(QUANTISE, F16, F16), SIZE),
    (lambda c: c.with_scales(QUANTISE, BYTE, E4M3FN), SIZE),
    (lambda c: (c.with_scales(CAST), setattr(c.planes[0], "factor", 0.0)), SIZE),
    (lambda c: (c.with_scales(CAST), setattr(c.planes[0], "factor", float("nan"))), SIZE),
    (lambda c: setattr(c.planes[0].source, "tile_tokens", -1), SIZE),
    (lambda c: setattr(c.planes[0].source, "tile_tokens", BIG), SIZE),
    (lambda c: setattr(c.plan.source, "page", 0), SIZE),
    (lambda c: setattr(c.plan.target, "page", -8), SIZE),
    (lambda c: setattr(c.plan.source, "blocks", 0), SIZE),
    (lambda c: setattr(c.plan.source, "start", -1), SIZE),
    (lambda c: setattr(c.plan.source, "start", BIG), SIZE),
    (lambda c: setattr(c.plan.source, "entries", -1), SIZE),
    (lambda c: setattr(c.plan.source, "spans", -1), SIZE),
    (lambda c: setattr(c.planes[0].source, "token", -16), STRIDE),
    (lambda c: setattr(c.planes[0].source, "token", 15), STRIDE),
    (lambda c: setattr(c.planes[0].source, "tile", -16), STRIDE),
    (lambda c: c.axis(source=3), STRIDE),
    (lambda c: c.axis(target=-2), STRIDE),
    (lambda c: setattr(c.planes[0].target, "head", BIG), STRIDE),
    (lambda c: setattr(c.planes[0].source, "block", (1 << 63) - 2), STRIDE),
    (lambda c: c.bases[1].__setitem__(0, c.bases[1][0] + 1), STRIDE),
    (lambda c: c.bases[1].__setitem__(0, (1 << 64) - 2), STRIDE),
    (lambda c: (c.with_scales(CAST), setattr(c.planes[0].target_scale, "block", 2)), STRIDE),
    (lambda c: setattr(c.plan, "tokens", 9), TABLE),
    (lambda c: setattr(c.plan.source, "start", 1), TABLE),
    (lambda c: setattr(c.plan.target, "entries", 0), TABLE),
    (lambda c: c.tables[0].__setitem__(0, 2), TABLE),
    (lambda c: c.tables[0].__setitem__(1, -1), TABLE),
    (lambda c: setattr(c.plan, "kernels", 99), UNSUPPORTED),
    (lambda c: setattr(c.plan, "kernels", -1), UNSUPPORTED),
    (lambda c: setattr(c.plan.source, "spans", 0), SPAN),
    (lambda c: c.spans[0].__setitem__(0, c.spans[0][0] + 2), SPAN),
    (lambda c: c.spans[0].__setitem__(1, c.spans[0][1] - 1), SPAN),
    (lambda c: c.spans[1].__setitem__(1, c.spans[1][1] - 1), SPAN),
    (lambda c: c.spans[0].__setitem__(1, c.spans[0][0]), SPAN),
    (lambda c: setattr(c.plan.source, "spans", 2) or c.spans[0].__setitem__(2, c.spans[0][0]), SPAN),
    (lambda c: c.bases[0].__setitem__(1, c.bases[0][1] + 2), SPAN),
    (lambda c: c.bases[1].__setitem__(0, c.bases[1][0] - 2), SPAN),
    (lambda c: setattr(c.plan.source, "blocks", 3), SPAN),
    (lambda c: setattr(c.plan.source, "page", 5), SPAN),
    (lambda c: setattr(c.planes[0].source, "head", 66), SPAN),
    (lambda c: setattr(c.planes[0].source, "token", 18), SPAN),
    (lambda c: c.axis(source=4), SPAN),
    (lambda c: c.axis(size=9), SPAN),
    (lambda c: (setattr(c.planes[0].source, "tile_tokens", 3), setattr(c.planes[0].source, "tile", 50)), SPAN),
    (lambda c: (c.with_scales(CAST), setattr(c.planes[0].source_scale, "head", 4)), SPAN),
    (lambda c: (c.with_scales(QUANTISE, F16, E4M3FN), setattr(c.planes[0].target_scale, "token", 4)), SPAN),
    (lambda c: c.with_scales(CAST, F16, F32), STRIDE),
    (lambda c: (setattr(c.plan.target, "page", 4), setattr(c.plan.target, "entries", 2), repeat(c)), TWICE),
    (lambda c: into_itself(c), OVERLAP),
    (lambda c: (c.with_scales(COPY_EQUAL), c.scales.__setitem__(3, 2.0)), SCALES),
]


def repeat(call: Call) -> None:
    call.tables[1] = array("q", [1, 1])
    call.plan.target.table = call.tables[1].buffer_info()[0]


@pytest.mark.parametrize(("spoil", "code"), WRONG)
def test_wrong_calls(spoil: Callable[[Call], object], code: int) -> None:
    call = Call()
    spoil(call)
    before = call.source.copy(), call.scales.copy()
    assert run(call.plan) == code
    assert not call.target.any()
    assert np.array_equal(call.source, before[0])
    assert np.array_equal(call.scales, before[1])


@pytest.mark.parametrize("kernels", native.KERNELS)
def test_kernels_that_this_cpu_lacks_are_refused(kernels: native.Kernels) -> None:
    call = Call()
    call.plan.kernels = native.KERNELS[kernels]
    has = kernels in ("best", *cpu_kernels())
    assert run(call.plan) == (0 if has else UNSUPPORTED)
    assert call.target.any() == has


def test_memory_that_ends_where_the_last_element_does_is_enough() -> None:
    """Tiles, of which a block's last one is not whole: what it leaves out need not be there."""
    call = Call()
    side = call.planes[0].source
    side.tile_tokens, side.tile, side.token = 3, 48, 16
    assert run(call.plan) == 0
    call.spans[0][1] -= 2
    assert run(call.plan) == SPAN


def test_a_source_may_name_a_block_twice() -> None:
    call = Call()
    call.tables[0][0] = 0
    assert run(call.plan) == 0
    source = call.source.reshape(2, 2, 3, 4, 8)
    wanted = np.concatenate([source[:, 0], source[:, 0]], axis=2)
    assert np.array_equal(call.target.reshape(2, 2, 3, 8, 8)[:, 0], wanted)


@pytest.mark.parametrize("blocks", [5000, 50_000_000])
def test_a_block_named_twice_is_found_among_thousands(blocks: int) -> None:
    """In a pool that is full, and in one so large that only a few blocks are named."""
    step = blocks // 5000
    memory = [np.arange(4 * 5000, dtype=np.uint32), np.zeros(4 * 5000, dtype=np.uint32)]
    bases = [array("Q", [part.ctypes.data]) for part in memory]
    spans = [array("Q", [part.ctypes.data, part.ctypes.data + part.nbytes]) for part in memory]
    tables = [array("q", range(5000)), array("q", (i * step for i in range(5000)))]
    plane = native.Plane(source_type=F32, target_type=F32, heads=1, dims=1)
    plane.dim[0] = native.Axis(1, 4, 4)
    # A block of the large pool takes no room of its own: only the table is of interest, which is checked before.
    plane.source = native.Side(bases[0].buffer_info()[0], 4, 0, 0)
    plane.target = native.Side(bases[1].buffer_info()[0], 4 if step == 1 else 0, 0, 0)
    views = [
        native.Tokens(table.buffer_info()[0], 5000, count, 1, 0, span.buffer_info()[0], 1)
        for table, span, count in zip(tables, spans, (5000, blocks), strict=True)
    ]
    plan = native.CPlan(1, 0, 0, 5000, 1, 1, 1, ctypes.pointer(plane), *views)
    assert run(plan) == 0
    tables[1][4321] = tables[1][17]
    memory[1][:] = 0
    assert run(plan) == TWICE
    assert not memory[1].any()


def test_what_is_too_large_for_memory() -> None:
    """The library's own tables don't fit: a code, and nothing written. In a process that may take no more memory."""
    script = """
import resource
from tests.layouts.test_native_refusals import *
tokens = 1 << 22
memory = [np.ones(tokens, dtype=np.uint8), np.zeros(tokens, dtype=np.uint8)]
bases = [array("Q", [part.ctypes.data]) for part in memory]
spans = [array("Q", [part.ctypes.data, part.ctypes.data + tokens]) for part in memory]
tables = [np.random.default_rng(seed).permutation(tokens) for seed in range(2)]
plane = native.Plane(source_type=BYTE, target_type=BYTE, heads=1, dims=1)
plane.dim[0] = native.Axis(1, 1, 1)
plane.source, plane.target = (native.Side(base.buffer_info()[0], 1, 0, 0) for base in bases)
views = [native.Tokens(table.ctypes.data, tokens, tokens, 1, 0, span.buffer_info()[0], 1)
         for table, span in zip(tables, spans)]
plan = native.CPlan(1, 0, 0, tokens, 1, 1, 1, ctypes.pointer(plane), *views)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20), resource.RLIM_INFINITY))
code = run(plan)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert code == MEMORY, code
assert not memory[1].any()
assert run(plan) == 0 and memory[1].all()
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know how much memory a process has taken")
    if b"libasan" in Path("/proc/self/maps").read_bytes():
        pytest.skip("the address sanitizer ends a process that gets no memory")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
