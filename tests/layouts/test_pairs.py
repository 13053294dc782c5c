"""Every ordered pair of layouts, bit for bit against the engines' own definitions, whole allocations compared."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlingua.layouts import FORMATS, Extent, Geometry, LayoutError, Plane, convert, native
from kvlingua.layouts.formats import ROWS
from kvlingua.layouts.plan import Plan, make_plan
from kvlingua.layouts.view import View
from tests.layouts import kernel_sets
from tests.layouts.engine_pools import GOLDEN, EnginePool, random_content

DIMS = (32, 64, 80, 96, 128, 256)
PAGES = (1, 2, 5, 8, 16, 24, 32, 48, 64, 128)
NUMBERS = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "uint8")
KINDS = {
    kind: [name for name, form in GOLDEN.items() if kind in form.kinds]
    for kind in ("kv", "mla", "scaled", "fp4")  # K and V; latent and rope; fp8 with scales per token; fp4 with scales
}
"""The rows that keep a set of planes."""

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
MORE = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Side:
    """What varies on one side, the layout aside. page: which one of those that the layout can have."""

    extent: Extent
    page: int
    start: int
    pad: int
    guard: int


@dataclass(frozen=True)
class Copy:
    """What a property test varies. equal: the geometry with K as wide as V, for engines that have no other."""

    geometry: Geometry
    equal: Geometry
    source: Side
    target: Side
    tokens: int
    seed: int

    def of(self, source: str, target: str) -> Geometry:
        """The geometry for a pair."""
        return self.equal if GOLDEN[source].equal or GOLDEN[target].equal else self.geometry


@st.composite
def extents(draw: st.DrawFn, geometry: Geometry) -> Extent:
    head = draw(st.integers(0, geometry.kv_heads - 1))
    layer = draw(st.integers(0, geometry.layers - 1))
    return Extent(
        head, draw(st.integers(head + 1, geometry.kv_heads)), layer, draw(st.integers(layer + 1, geometry.layers))
    )


@st.composite
def geometries(draw: st.DrawFn, kind: str) -> tuple[Geometry, Geometry]:
    """A geometry of that kind, and the same with K as wide as V."""
    layers, heads = draw(st.sampled_from(((1, 4), (2, 1), (2, 3), (3, 2))))
    dtype = draw(st.sampled_from(NUMBERS))
    k_dim = draw(st.sampled_from(DIMS))
    v_dim = draw(st.just(k_dim) | st.sampled_from(DIMS))
    if kind == "kv":
        return Geometry.kv(layers, heads, k_dim, dtype, v_dim), Geometry.kv(layers, heads, k_dim, dtype)
    if kind == "scaled":
        dtype = draw(st.sampled_from([name for name in NUMBERS if name.startswith("float8")]))
        scaled = Geometry.kv(layers, heads, k_dim, dtype, v_dim, scales="token")
    elif kind == "mla":
        scaled = Geometry.mla(layers, draw(st.sampled_from((64, 96, 512))), draw(st.sampled_from((16, 64))), dtype)
    else:
        widths = {"k": k_dim // 2, "v": v_dim // 2}
        numbers = [Plane(name, width, "float4_e2m1fn_x2") for name, width in widths.items()]
        scales = [Plane(f"{name}_scale", width // 8, "uint8") for name, width in widths.items()]
        scaled = Geometry(layers, heads, (*numbers, *scales))
    return scaled, scaled


@st.composite
def copies(draw: st.DrawFn, kind: str) -> Copy:
    geometry, equal = draw(geometries(kind))
    full = st.just(geometry.full)
    extent = draw(full | extents(geometry))
    overlapping = extents(geometry).filter(lambda other: other.intersect(extent) is not None)

    def side(extent: Extent) -> Side:
        return Side(
            extent=extent,
            page=draw(st.integers(0, 9)),
            start=draw(st.just(0) | st.integers(0, 70)),
            pad=draw(st.sampled_from((0, 0, 8, 32, 37))),
            guard=draw(st.sampled_from((32, 16, 24, 27))),
        )

    return Copy(
        geometry=geometry,
        equal=equal,
        source=side(extent),
        target=side(draw(full | overlapping)),
        tokens=draw(st.integers(1, 150)),
        seed=draw(st.integers(0, 2**16)),
    )


def place(name: str, geometry: Geometry, side: Side, tokens: int, seed: int) -> tuple[int, list[int]]:
    """A page that the layout can have, and a table of a few blocks more than the tokens need, in random order."""
    if not GOLDEN[name].has_blocks:
        return side.start + tokens + 3, [0]
    multiple = GOLDEN[name].page_multiple(geometry.planes[0].itemsize)
    pages = [page for page in PAGES if page % multiple == 0]
    page = pages[side.page % len(pages)]
    table = list(range(-(-(side.start + tokens) // page) + 2))
    random.Random(seed).shuffle(table)
    return page, table


class Engine:
    """A pool with a few blocks more than a sequence needs, those in random order, and where in it its tokens are."""

    def __init__(self, name: str, geometry: Geometry, side: Side, tokens: int, seed: int) -> None:
        page, self.table = place(name, geometry, side, tokens, seed)
        self.start, self.stop = side.start, side.start + tokens
        pad = side.pad if GOLDEN[name].padded else 0
        self.pool = EnginePool(name, geometry, side.extent, page, len(self.table), pad, seed, side.guard)

    def view(self, pool: EnginePool | None = None) -> View:
        return (pool or self.pool).pool().view(self.table, self.start, self.stop)


def check(source_name: str, target_names: list[str], copy: Copy) -> None:
    """Both backends write exactly what the golden form of each target says, and not one byte else."""
    content = {geometry: random_content(geometry, copy.tokens, copy.seed) for geometry in {copy.geometry, copy.equal}}

    @cache
    def source_of(geometry: Geometry) -> tuple[Engine, EnginePool]:
        source = Engine(source_name, geometry, copy.source, copy.tokens, copy.seed)
        source.pool.put(content[geometry], source.table, source.start, copy.source.extent)
        return source, source.pool.clone()

    common = copy.source.extent.intersect(copy.target.extent)
    assert common is not None
    for target_name in target_names:
        pair, geometry = f"{source_name} to {target_name}", copy.of(source_name, target_name)
        source, before = source_of(geometry)
        target = Engine(target_name, geometry, copy.target, copy.tokens, copy.seed)
        untouched, expected = target.pool.clone(), target.pool.clone()
        expected.put(content[geometry], target.table, target.start, common)

        def compare(
            what: str, engine: Engine = target, wanted: EnginePool = expected, old: EnginePool = untouched
        ) -> None:
            for got, right, fresh in zip(engine.pool.memory, wanted.memory, old.memory, strict=True):
                assert torch.equal(got, right), what
                got.copy_(fresh)

        view, into = source.view(), target.view()
        convert(view, into, backend="torch")
        compare(f"{pair}: torch reference")
        plan = make_plan(view, into)
        for kernels in kernel_sets.kernels_here():
            for stream_bytes in (0, 1):
                kernel_sets.run(plan, kernels, stream_bytes)
                compare(f"{pair}: native library, {kernels}, {stream_bytes=}")
        for got, right in zip(source.pool.memory, before.memory, strict=True):
            assert torch.equal(got, right), f"{pair}: the source was written"


def explore(kind: str, rules: settings, check_one: Callable[[Copy], None]) -> None:
    """Run `check_one` on examples of that kind. Defined at each call, so that every test explores for itself."""
    rules(given(copy=copies(kind))(lambda copy: check_one(copy)))()


SOURCES = [(kind, source) for kind, names in KINDS.items() for source in names]


@pytest.mark.parametrize(("kind", "source"), SOURCES, ids=[f"{kind}-{source}" for kind, source in SOURCES])
def test_from_each_to_every_other(kind: str, source: str) -> None:
    explore(kind, FEW, lambda copy: check(source, KINDS[kind], copy))


@pytest.mark.parametrize(("kind", "name"), SOURCES, ids=[f"{kind}-{name}" for kind, name in SOURCES])
def test_each_from_and_to_what_is_stored(kind: str, name: str) -> None:
    """The pairs that every store and every load goes through."""

    def both(copy: Copy) -> None:
        check(name, ["canonical"], copy)
        check("canonical", [name], copy)

    explore(kind, MORE, both)


def test_all_rows_have_a_golden_form() -> None:
    assert {name: form.kinds for name, form in GOLDEN.items()} == {row.name: row.keeps for row in ROWS}
    assert len(FORMATS) >= 30
    assert len({layout.spec for layout in FORMATS.values()}) >= 36
    assert sum(len(names) ** 2 for names in KINDS.values()) > 1400


GEOMETRIES = {
    "kv": Geometry.kv(2, 1, 32, "float8_e4m3fn"),
    "mla": Geometry.mla(2, 32, 32, "float8_e4m3fn"),
    "scaled": Geometry.kv(2, 1, 32, "float8_e4m3fn", scales="token"),
    "fp4": Geometry(2, 1, tuple(Plane(name, 32, "float4_e2m1fn_x2") for name in ("k", "v"))),
}


def test_planes_that_do_not_match_are_refused() -> None:
    """All ordered pairs of rows with different planes; only fp8 with and without scales may be converted, if wanted."""

    def view(kind: str, name: str) -> View:
        page, blocks = (16, 2) if GOLDEN[name].has_blocks else (32, 1)
        fp4 = Geometry(2, 1, (*GEOMETRIES["fp4"].planes, Plane("k_scale", 4, "uint8"), Plane("v_scale", 4, "uint8")))
        geometry = fp4 if kind == "fp4" else GEOMETRIES[kind]
        return EnginePool(name, geometry, geometry.full, page, blocks).pool().view([0, 1], 0, 8)

    views = [(kind, view(kind, name)) for kind, names in KINDS.items() for name in names]
    refused = 0
    for kind, source in views:
        for other, target in views:
            if kind != other:
                with pytest.raises(LayoutError, match=r"convert|plane|lossy|differ"):
                    make_plan(source, target)
                refused += 1
                if {kind, other} == {"kv", "scaled"}:
                    assert make_plan(source, target, allow_lossy=True).tokens == 8
                else:
                    with pytest.raises(LayoutError, match=r"convert|plane|differ"):
                        make_plan(source, target, allow_lossy=True)
    assert refused > 1000


def test_a_row_takes_no_planes_but_its_own() -> None:
    for layout in FORMATS.values():
        own = {plane for plane, _ in layout.groups}
        for geometry in GEOMETRIES.values():
            if own and "*" not in own and own != {plane.name for plane in geometry.planes}:
                with pytest.raises(LayoutError, match="planes"):
                    layout.pool(geometry, geometry.full, page=16, blocks=1, buffers=[])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("page", [1, 16, 32, 64, 128])
def test_each_page_and_head_dim(page: int, dim: int, dtype: str) -> None:
    """The grid itself, aligned as engines align, in the pairs with the most different loops; all kernels."""
    geometry = Geometry.kv(2, 2, dim, dtype)
    for source, target in (
        ("vllm_cpu_vec", "canonical"),
        ("canonical", "vllm_cpu_vec"),
        ("sglang_nhd", "hf"),
        ("hf", "vllm_lbnhc"),
        ("canonical", "vllm_rocm"),
        ("llamacpp_v_trans", "canonical"),
        ("vllm_cpu_amx", "vllm_aiter"),
    ):
        sides = []
        for name in (source, target):
            pages = [other for other in PAGES if other % GOLDEN[name].page_multiple(2) == 0]
            wanted = 64 if name == "canonical" else page
            sides.append(Side(geometry.full, pages.index(wanted) if wanted in pages else 0, 0, 0, 32))
        check(source, [target], Copy(geometry, geometry, sides[0], sides[1], page + 19, page))


def test_the_check_notices_a_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of everything above: a kernel that flips one bit fails the comparison."""
    right = native.run

    def wrong(plan: Plan, **options: Any) -> None:
        right(plan, **options)
        ctypes.c_uint8.from_address(plan.target.pool.planes[-1].bases[-1]).value ^= 1

    monkeypatch.setattr(native, "run", wrong)
    geometry = Geometry.kv(1, 1, 32, "float32")
    side = Side(geometry.full, 4, 0, 0, 32)
    with pytest.raises(AssertionError, match="hf to sglang_hnd: native library"):
        check("hf", ["sglang_hnd"], Copy(geometry, geometry, side, side, 16, 1))


@pytest.mark.parametrize("name", ["vllm_cpu_amx", "vllm_rocm", "llamacpp_v_trans"])
def test_the_check_notices_a_wrong_row(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And so does a row that takes K for plain [token, dim]."""
    wrong = FORMATS["llamacpp" if name == "llamacpp_v_trans" else "vllm_b2hnd"]
    monkeypatch.setattr("tests.layouts.engine_pools.format", lambda row: wrong if row == name else FORMATS[row])
    geometry = Geometry.kv(1, 1, 32, "bfloat16")
    side = Side(geometry.full, 0, 0, 0, 32)
    with pytest.raises(AssertionError, match="torch reference"):
        check("canonical", [name], Copy(geometry, geometry, side, side, 16, 1))
