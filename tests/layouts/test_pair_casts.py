"""Between layouts with other numbers: scales that travel, casts, and the order of rotated dims.

The arithmetic is tested in test_casts.py, test_rope.py and test_native_casts.py; here it meets every row's places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import Extent, Geometry, LayoutError, convert
from kvlingua.layouts.geometry import Rope
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View
from tests.layouts import kernel_sets
from tests.layouts.engine_pools import GOLDEN, Content, EnginePool, random_content
from tests.layouts.test_pairs import KINDS, Side, place
from tests.layouts.written_by import TOKENS, contiguous

FEW = settings(max_examples=4, deadline=None)
MORE = settings(max_examples=100, deadline=None)
FP8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMS = st.sampled_from(KINDS["kv"])


@dataclass(frozen=True)
class Cache:
    """One cache of a test: a pool, and where in it a sequence's tokens are."""

    pool: EnginePool
    table: list[int]
    start: int
    stop: int

    @classmethod
    def of(cls, name: str, geometry: Geometry, side: Side, tokens: int, static: bool = False) -> Cache:
        page, table = place(name, geometry, side, tokens, seed=side.start)
        pad = side.pad if GOLDEN[name].padded else 0
        pool = EnginePool(name, geometry, side.extent, page, len(table), pad, side.page, side.guard, static)
        return cls(pool, table, side.start, side.start + tokens)

    @property
    def view(self) -> View:
        return self.pool.pool().view(self.table, self.start, self.stop)

    def put(self, content: Content, part: Extent | None = None) -> None:
        self.pool.put(content, self.table, self.start, part or self.pool.extent)

    def clone(self) -> Cache:
        return replace(self, pool=self.pool.clone())

    def same(self, other: Cache) -> bool:
        return all(torch.equal(one, two) for one, two in zip(self.pool.memory, other.pool.memory, strict=True))


@st.composite
def sides(draw: st.DrawFn, geometry: Geometry) -> Side:
    return Side(
        extent=geometry.full,
        page=draw(st.integers(0, 9)),
        start=draw(st.just(0) | st.integers(0, 40)),
        pad=draw(st.sampled_from((0, 8, 37))),
        guard=draw(st.sampled_from((32, 27))),
    )


def runs(source: Cache, target: Cache, allow_lossy: bool = False) -> Iterable[tuple[str, Cache]]:
    """What each backend makes of a copy of `target`."""
    by_torch = target.clone()
    convert(source.view, by_torch.view, backend="torch", allow_lossy=allow_lossy)
    yield "torch", by_torch
    for kernels in kernel_sets.kernels_here():
        for stream_bytes in (0, 1):
            fresh = target.clone()
            kernel_sets.run(make_plan(source.view, fresh.view, allow_lossy), kernels, stream_bytes)
            yield f"native {kernels} {stream_bytes}", fresh


def with_scales(content: Content, geometry: Geometry) -> Content:
    """The same numbers with the scales that `geometry` has: coarse ones repeated."""
    tokens = len(content["k", 0])
    found = {}
    for plane in geometry.planes:
        for layer in range(geometry.layers):
            rows = content[plane.name, layer]
            if plane.is_scale:
                rows = rows.expand(tokens if plane.per == "token" else 1, -1, -1)
                rows = rows.expand(-1, 1 if plane.per == "tensor" else geometry.kv_heads, -1)
            found[plane.name, layer] = rows
    return found


@pytest.mark.parametrize("name", KINDS["kv"])
def test_static_scales_travel_with_the_numbers(name: str) -> None:
    """An engine's scales, per head or per tensor, into what is stored, finer scales among it, and back."""

    @FEW
    @given(data=st.data())
    def explore(data: st.DataObject) -> None:
        dtype, per = data.draw(st.sampled_from(FP8)), data.draw(st.sampled_from(("tensor", "head")))
        dim, heads = data.draw(st.sampled_from((32, 96))), data.draw(st.integers(1, 3))
        geometry = Geometry.kv(2, heads, dim, dtype, scales=per)
        tokens = data.draw(st.integers(1, 70))
        content = random_content(geometry, tokens, seed=tokens)
        engine = Cache.of(name, geometry, data.draw(sides(geometry)), tokens, static=True)
        engine.pool.put_scales(content)
        full = engine.clone()
        full.put(content)
        fineness = data.draw(st.sampled_from((per, "head", "token")))
        stored = Geometry.kv(2, heads, dim, dtype, scales=fineness)
        chunks = Cache.of("canonical", stored, replace(data.draw(sides(stored)), start=0), tokens)
        wanted = chunks.clone()
        wanted.put(with_scales(content, stored))
        for backend, got in runs(full, chunks):
            assert got.same(wanted), backend
        if fineness == per:
            for backend, got in runs(wanted, engine):
                assert got.same(full), backend

    explore()


@pytest.mark.parametrize("name", KINDS["kv"])
def test_static_scales_that_differ_are_refused(name: str) -> None:
    """Nothing is written; with allow_lossy the numbers are brought to the engine's scales."""
    geometry = Geometry.kv(2, 2, 32, "float8_e4m3fn", scales="head")
    side = Side(geometry.full, 4, 3, 8, 32)
    content = {place: rows.clone() for place, rows in random_content(geometry, 20, seed=1).items()}
    for (plane, _), rows in content.items():
        if plane.endswith("_scale"):
            rows.copy_(torch.tensor(0.5).view(torch.int32))
    stored = Cache.of("canonical", geometry, replace(side, start=0), 20)
    stored.put(content)
    engine = Cache.of(name, geometry, side, 20, static=True)
    engine.pool.put_scales(content)
    engine.pool.scales["v_scale"][1].view(torch.float32)[1] = 0.75
    before = engine.clone()
    for backend in ("torch", "native"):
        with pytest.raises(LayoutError, match=r"v_scale|scales"):
            convert(stored.view, engine.view, backend=backend)
        assert engine.same(before), backend
    results = [got for _, got in runs(stored, engine, allow_lossy=True)]
    assert all(got.same(results[0]) for got in results)
    assert not results[0].same(before)


@MORE
@given(data=st.data(), source=FORMS, target=FORMS)
def test_floats_are_rounded_wherever_they_lie(data: st.DataObject, source: str, target: str) -> None:
    """Finite fp32, fp16 and bf16 into each other, against torch's own rounding in the golden forms."""
    types = data.draw(st.permutations(list(FLOATS)))[:2]
    ours, theirs = (Geometry.kv(2, 3, data.draw(st.just(64)), dtype) for dtype in types)
    tokens = data.draw(st.integers(1, 50))
    generator = torch.Generator().manual_seed(tokens)
    values = {
        (plane, layer): (torch.randn(tokens, 3, 64, generator=generator) * 40).to(FLOATS[types[0]])
        for plane in ("k", "v")
        for layer in range(2)
    }
    cache = Cache.of(source, ours, data.draw(sides(ours)), tokens)
    cache.put({at: rows.view(torch.int32 if types[0] == "float32" else torch.int16) for at, rows in values.items()})
    into = Cache.of(target, theirs, data.draw(sides(theirs)), tokens)
    wanted = into.clone()
    cast = {at: rows.to(FLOATS[types[1]]) for at, rows in values.items()}
    wanted.put({at: rows.view(torch.int32 if types[1] == "float32" else torch.int16) for at, rows in cast.items()})
    if types[1] != "float32":
        with pytest.raises(LayoutError, match="allow_lossy"):
            convert(cache.view, into.view)
    for backend, got in runs(cache, into, allow_lossy=True):
        assert got.same(wanted), backend


@MORE
@given(data=st.data(), source=FORMS, target=FORMS)
def test_rotated_dims_are_permuted_wherever_they_lie(data: st.DataObject, source: str, target: str) -> None:
    """half to interleaved and back: dim i and i + width / 2 become 2i and 2i + 1; exact, for all types."""
    dim = data.draw(st.sampled_from((32, 64, 96)))
    width = data.draw(st.sampled_from((16, dim // 2, dim)))
    orders = data.draw(st.permutations(["half", "interleaved"]))
    dtype = data.draw(st.sampled_from((*FLOATS, *FP8)))
    ours, theirs = (Geometry.kv(2, 2, dim, dtype, rope=Rope(order, width)) for order in orders)
    tokens = data.draw(st.integers(1, 50))
    content = random_content(ours, tokens, seed=tokens)
    pairs = torch.arange(width).view(2, -1).T.reshape(-1)  # 0, w/2, 1, w/2 + 1, ...
    places = torch.cat([pairs if orders[0] == "half" else pairs.argsort(), torch.arange(width, dim)])
    cache = Cache.of(source, ours, data.draw(sides(ours)), tokens)
    cache.put(content)
    into = Cache.of(target, theirs, data.draw(sides(theirs)), tokens)
    wanted = into.clone()
    wanted.put({at: rows[:, :, places] if at[0] == "k" else rows for at, rows in content.items()})
    for backend, got in runs(cache, into):
        assert got.same(wanted), backend


@MORE
@given(data=st.data(), source=FORMS, target=st.sampled_from(KINDS["kv"] + KINDS["scaled"]))
def test_fp8_is_the_same_in_library_and_reference(data: st.DataObject, source: str, target: str) -> None:
    """Any numbers, NaNs and infinities among them, into and out of fp8, scales computed where there are none."""
    scaled = target in KINDS["scaled"]
    types = data.draw(st.sampled_from((*FLOATS, *FP8))), data.draw(st.sampled_from(FP8 if scaled else (*FLOATS, *FP8)))
    ours = Geometry.kv(2, 2, 64, types[0])
    theirs = Geometry.kv(2, 2, 64, types[1], scales="token" if scaled else None)
    tokens = data.draw(st.integers(1, 50))
    cache = Cache.of(source, ours, data.draw(sides(ours)), tokens)
    cache.put(random_content(ours, tokens, seed=tokens))
    into = Cache.of(target, theirs, data.draw(sides(theirs)), tokens)
    results = list(runs(cache, into, allow_lossy=True))
    for backend, got in results:
        assert got.same(results[0][1]), backend


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("name", KINDS["scaled"])
def test_computed_scales_fit_their_numbers(name: str, dtype: str) -> None:
    """fp32 into fp8 with a scale per token and head, and out again: near what went in, and not all zero."""
    geometry = Geometry.kv(2, 2, 64, dtype, scales="token")
    plain = Geometry.kv(2, 2, 64, "float32")
    generator = torch.Generator().manual_seed(1)
    planes = {plane: torch.randn(2, TOKENS, 2, 64, generator=generator) * 1000 for plane in ("k", "v")}
    ours, before = contiguous(plain, planes)
    back, after = contiguous(plain, {plane: torch.zeros(2, TOKENS, 2, 64) for plane in ("k", "v")})
    cache = Cache.of(name, geometry, Side(geometry.full, 4, 5, 8, 32), TOKENS)
    convert(ours.view([0], 0, TOKENS), cache.view, allow_lossy=True)
    convert(cache.view, back.view([0], 0, TOKENS), allow_lossy=True)
    relative = 2.0**-3 if dtype == "float8_e5m2" else 2.0**-4
    for one, two in zip(before, after, strict=True):
        exact, got = one.view(torch.float32), two.view(torch.float32)
        largest = exact.abs().amax(-1, keepdim=True)
        assert ((got - exact).abs() <= exact.abs() * relative * 1.001 + largest * 2.0**-18).all()
        assert not torch.equal(got, exact)
