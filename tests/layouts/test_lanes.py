"""How many lanes of a warp of 32, or of a wavefront of 64, have something to do at each size of head, by the twin."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from kvlingua.layouts import Buffer, Geometry, View, format, gpu
from kvlingua.layouts.plan import make_plan
from tests.native import builds

DIMS = (64, 80, 96, 128, 256, 576)
WIDTHS = (32, 64)
TOKENS, LAYERS, PAGE = 512, 2, 16


def view(row: str, geometry: Geometry, page: int) -> View:
    layout = format(row)
    page = page if "block" in layout.axes("k") else TOKENS
    count = 1
    for axis in layout.separate:
        count *= LAYERS if axis == "layer" else 2
    nbytes = geometry.block_bytes(geometry.full, TOKENS) // count
    buffers = [Buffer.of(torch.zeros(nbytes, dtype=torch.uint8)) for _ in range(count)]
    pool = layout.pool(geometry, geometry.full, page=page, blocks=TOKENS // page, buffers=buffers)
    return pool.view(list(reversed(range(TOKENS // page))), 0, TOKENS)


def busy(source: View, target: View, blocks: int) -> list[float]:
    """For each width the share of lanes that make an access where the busiest of their warp does.

    blocks: how many grid blocks the work is spread to, if it is enough for so many.
    """
    twin = builds.twin()
    library = gpu.load(twin).library if twin else None
    if library is None or twin is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    counts = (ctypes.c_uint64 * 3)()
    library.kvl_twin_lanes(counts)
    gpu.run_twin(make_plan(source, target, allow_lossy=True), twin, blocks=blocks)
    library.kvl_twin_lanes(counts)
    made, *room = counts
    assert made
    return [made / one for one in room]


def transfers(dim: int) -> Iterator[tuple[str, View, View]]:
    """Every kind of work: rows, both ways of transposing, casts with scales that are made and that are read."""
    model = Geometry.kv(LAYERS, 1 if dim == 576 else 4, dim, "bfloat16")
    small = Geometry.kv(LAYERS, 1 if dim == 576 else 4, dim, "float8_e4m3fn", scales="token")
    stored = view("canonical", model, 64)
    for row in ("sglang_nhd", "vllm_lbhnc", "vllm_rocm", "llamacpp_v_trans"):
        engine = view(row, model, PAGE)
        yield f"{row} -> canonical", engine, stored
        yield f"canonical -> {row}", stored, engine
    engine, cast = view("sglang_nhd", model, PAGE), view("canonical", small, 64)
    yield "sglang_nhd -> canonical fp8", engine, cast
    yield "canonical fp8 -> sglang_nhd", cast, engine


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("blocks", "least"), [(1, 0.95), (4000, 0.75)])
def test_no_lane_idles(dim: int, blocks: int, least: float) -> None:
    """Of much work hardly any does; where a grid block has an access for each thread, a warp or two are cut off."""
    for name, source, target in transfers(dim):
        for width, share in zip(WIDTHS, busy(source, target, blocks), strict=True):
            assert share >= least, f"{name} at {dim}: {share:.2f} of {width} lanes"
