"""Every ordered pair of layouts, bit for bit against the engines' own definitions, whole allocations compared."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlingua.layouts import FORMATS, Buffer, Extent, Geometry, convert, native
from kvlingua.layouts.plan import Plan, make_plan
from tests.layouts.engine_pools import EnginePool, random_bits, random_content

DIMS = (32, 64, 80, 96, 128, 256)
PAGES = (1, 16, 32, 64, 128)
PAIRS = [(source, target) for source in FORMATS for target in FORMATS]
KERNELS: tuple[native.Kernels, ...] = ("portable", "avx2", "avx512")


@dataclass(frozen=True)
class Copy:
    """What a property test varies, the layouts aside."""

    geometry: Geometry
    source_extent: Extent
    target_extent: Extent
    source_page: int
    target_page: int
    source_start: int
    target_start: int
    tokens: int
    source_pad: int
    target_pad: int
    source_guard: int
    target_guard: int
    seed: int


@st.composite
def extents(draw: st.DrawFn, geometry: Geometry) -> Extent:
    head = draw(st.integers(0, geometry.kv_heads - 1))
    layer = draw(st.integers(0, geometry.layers - 1))
    return Extent(
        head, draw(st.integers(head + 1, geometry.kv_heads)), layer, draw(st.integers(layer + 1, geometry.layers))
    )


@st.composite
def copies(draw: st.DrawFn) -> Copy:
    k_dim = draw(st.sampled_from(DIMS))
    v_dim = draw(st.just(k_dim) | st.sampled_from(DIMS))
    dtype = draw(st.sampled_from(("float32", "float16", "bfloat16")))
    geometry = Geometry.kv(draw(st.integers(1, 3)), draw(st.integers(1, 4)), k_dim, dtype, v_dim)
    full = st.just(geometry.full)
    source_extent = draw(full | extents(geometry))
    overlapping = extents(geometry).filter(lambda extent: extent.intersect(source_extent) is not None)
    return Copy(
        geometry=geometry,
        source_extent=source_extent,
        target_extent=draw(full | overlapping),
        source_page=draw(st.sampled_from(PAGES)),
        target_page=draw(st.sampled_from(PAGES)),
        source_start=draw(st.just(0) | st.integers(0, 70)),
        target_start=draw(st.just(0) | st.integers(0, 70)),
        tokens=draw(st.integers(1, 150)),
        source_pad=draw(st.sampled_from((0, 0, 8, 32, 37))),
        target_pad=draw(st.sampled_from((0, 0, 8, 32, 37))),
        source_guard=draw(st.sampled_from((32, 16, 24, 27))),
        target_guard=draw(st.sampled_from((32, 16, 24, 27))),
        seed=draw(st.integers(0, 2**16)),
    )


def pool_and_table(
    name: str, extent: Extent, page: int, stop: int, pad: int, guard: int, copy: Copy
) -> tuple[EnginePool, list[int]]:
    """A pool with a few blocks more than [0, stop) needs, and those blocks in random order."""
    if name == "hf":
        page, blocks = stop + 3, 1
    else:
        blocks = -(-stop // page) + 2
    order = list(range(blocks))
    random.Random(copy.seed).shuffle(order)
    return EnginePool(name, copy.geometry, extent, page, blocks, pad, copy.seed, guard), order


def supported(kernels: native.Kernels) -> bool:
    """Whether this CPU has them."""
    best = native.describe().rsplit(" ", 1)[-1]
    return native.KERNELS[kernels] <= native.KERNELS[best]


def check(source_name: str, target_name: str, copy: Copy) -> None:
    """Both backends write exactly what the golden form of the target says, and not one byte else."""
    stop = copy.source_start + copy.tokens
    source, source_table = pool_and_table(
        source_name, copy.source_extent, copy.source_page, stop, copy.source_pad, copy.source_guard, copy
    )
    stop = copy.target_start + copy.tokens
    target, target_table = pool_and_table(
        target_name, copy.target_extent, copy.target_page, stop, copy.target_pad, copy.target_guard, copy
    )
    common = copy.source_extent.intersect(copy.target_extent)
    assert common is not None
    content = random_content(copy.geometry, copy.tokens, copy.seed)
    source.put(content, source_table, copy.source_start, copy.source_extent)
    before = source.clone()
    expected = target.clone()
    expected.put(content, target_table, copy.target_start, common)

    by_torch = target.clone()
    view = source.pool().view(source_table, copy.source_start, copy.source_start + copy.tokens)
    convert(view, by_torch.pool().view(target_table, copy.target_start, stop), backend="torch")
    for got, wanted in zip(by_torch.memory, expected.memory, strict=True):
        assert torch.equal(got, wanted), "torch reference"

    plan = make_plan(view, target.pool().view(target_table, copy.target_start, stop))
    untouched = target.clone()
    for kernels in filter(supported, KERNELS):
        for stream_bytes in (0, 1):
            for memory, old in zip(target.memory, untouched.memory, strict=True):
                memory.copy_(old)
            native.run(plan, kernels=kernels, stream_bytes=stream_bytes)
            for got, wanted in zip(target.memory, expected.memory, strict=True):
                assert torch.equal(got, wanted), f"native library, {kernels}, {stream_bytes=}"
    for got, wanted in zip(source.memory, before.memory, strict=True):
        assert torch.equal(got, wanted), "the source was written"


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_pair(source: str, target: str) -> None:
    # Defined inside, so that every pair explores for itself.
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(copy=copies())
    def explore(copy: Copy) -> None:
        check(source, target, copy)

    explore()


def test_there_are_64_pairs() -> None:
    assert len(PAIRS) == 64


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("page", PAGES)
def test_each_page_and_head_dim(page: int, dim: int, dtype: str) -> None:
    """The grid itself, aligned as engines align, in the pairs with the most different loops; all kernels."""
    for source, target in (
        ("vllm_cpu_vec", "canonical"),
        ("canonical", "vllm_cpu_vec"),
        ("sglang_nhd", "hf"),
        ("hf", "vllm_lbnhc"),
    ):
        geometry = Geometry.kv(2, 2, dim, dtype)
        copy = Copy(
            geometry=geometry,
            source_extent=geometry.full,
            target_extent=geometry.full,
            source_page=64 if source == "canonical" else page,
            target_page=64 if target == "canonical" else page,
            source_start=0,
            target_start=0,
            tokens=page + 19,
            source_pad=0,
            target_pad=0,
            source_guard=32,
            target_guard=32,
            seed=page,
        )
        check(source, target, copy)


def test_the_check_notices_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of everything above: a kernel that flips one bit fails the comparison."""
    right = native.run

    def wrong(plan: Plan, **options: Any) -> None:
        right(plan, **options)
        ctypes.c_uint8.from_address(plan.planes[-1].target.bases[-1]).value ^= 1

    monkeypatch.setattr(native, "run", wrong)
    geometry = Geometry.kv(1, 1, 32, "float32")
    copy = Copy(geometry, geometry.full, geometry.full, 16, 16, 0, 0, 16, 0, 0, 32, 32, 1)
    with pytest.raises(AssertionError, match="native library"):
        check("hf", "sglang_hnd", copy)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_strides(data: st.DataObject) -> None:
    """Gaps along any axis, dim included, so that nothing need be contiguous anywhere: library against reference."""
    geometry = Geometry.kv(
        data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), "bfloat16"
    )
    tokens = data.draw(st.integers(1, 40))
    views = []
    for seed in range(2):
        layout = FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))]
        page = data.draw(st.integers(1, 20)) if "block" in layout.axes("k") else tokens
        blocks = -(-tokens // page)
        count = {(): 1, ("layer",): geometry.layers}.get(layout.separate, 2 * geometry.layers)
        nbytes = 2**20 // count
        memory = [random_bits(nbytes // 2, itemsize=2, seed=100 * seed + i) for i in range(count)]
        sizes = {"layer": geometry.layers, "block": blocks, "head": geometry.kv_heads, "token": page}
        strides: dict[str, int] = {}
        inside = 2
        gaps = st.sampled_from((0, 0, 0, 2, 10))
        for plane, axes in layout.groups:
            extent = 2
            for axis in reversed(axes):
                strides[f"{plane}.{axis}"] = extent + data.draw(gaps)
                extent = strides[f"{plane}.{axis}"] * sizes.get(axis, geometry.planes[0].width)
            inside = extent if plane == "k" else inside + extent
        for axis in reversed(layout.shared):
            strides[axis] = inside + data.draw(gaps)
            inside = strides[axis] * sizes.get(axis, geometry.planes[0].width)
        pool = layout.pool(
            geometry,
            geometry.full,
            page=page,
            blocks=blocks,
            buffers=[Buffer.of(part) for part in memory],
            strides=strides,
        )
        order = list(range(blocks))
        random.Random(seed).shuffle(order)
        views.append((pool.view(order, 0, tokens), memory))
    (source, _), (target, memory) = views
    before = [part.clone() for part in memory]
    convert(source, target, backend="torch")
    wanted = [part.clone() for part in memory]
    for part, old in zip(memory, before, strict=True):
        part.copy_(old)
    native.run(make_plan(source, target), stream_bytes=data.draw(st.sampled_from((0, 1))))
    for got, right in zip(memory, wanted, strict=True):
        assert torch.equal(got, right)
