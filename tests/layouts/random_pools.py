"""Caches of any form: random layouts, geometries and tables, for tests that hold whatever the description says."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from itertools import product

import torch
from hypothesis import strategies as st

from kvlingua.layouts import DTYPES, Buffer, Extent, Geometry, Layout, Plane, Pool, Rope, View
from kvlingua.layouts.arrangement import digits_offset
from kvlingua.layouts.geometry import Per
from kvlingua.layouts.strides import arrange

FLOATS = ("float32", "float16", "bfloat16")
FP8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
BYTES = ("uint8", "float4_e2m1fn_x2")
FINER: tuple[Per, ...] = ("tensor", "head", "token")


@dataclass(frozen=True)
class Kept:
    """How one side keeps numbers: their type, per what there is a scale, and whether the scales are static."""

    dtype: str
    scales: Per | None = None
    fixed: bool = False


@st.composite
def copied(draw: st.DrawFn) -> tuple[Kept, Kept]:
    """Both sides alike; scales may be repeated on the way."""
    dtype = draw(st.sampled_from(FLOATS + FP8 + BYTES))
    if dtype in FLOATS:
        return Kept(dtype), Kept(dtype)
    source: Per | None = draw(st.sampled_from((None, *FINER)))
    target: Per | None = draw(st.sampled_from(FINER[FINER.index(source) :])) if source else None
    return Kept(dtype, source, source in ("head", "tensor") and draw(st.booleans())), Kept(dtype, target)


@st.composite
def cast(draw: st.DrawFn) -> tuple[Kept, Kept]:
    """Any types; scales on either side, where a conversion exists."""
    ours, theirs = draw(st.sampled_from(FLOATS + FP8)), draw(st.sampled_from(FLOATS + FP8))
    before: Per | None = draw(st.sampled_from((None, "token", "head", "tensor"))) if ours in FP8 else None
    source = Kept(ours, before, before in ("head", "tensor") and draw(st.booleans()))
    if theirs not in FP8:
        return source, Kept(theirs)
    if draw(st.booleans()):
        return source, Kept(theirs, draw(st.sampled_from(("head", "tensor"))), fixed=True)
    if before is None:
        return source, Kept(theirs, draw(st.sampled_from((None, "token"))))
    return source, Kept(theirs, draw(st.sampled_from((None, *FINER[FINER.index(before) :]))))


@st.composite
def geometries(draw: st.DrawFn, kept: tuple[Kept, Kept]) -> tuple[Geometry, Geometry]:
    """One model, kept as each side keeps it: planes in any order, rotated dims in either."""
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    widths = {name: draw(st.sampled_from((1, 2, 4, 8, 12, 16, 24))) for name in ("k", "v")}
    rotated = draw(st.just(0) | st.integers(0, widths["k"] // 2)) * 2
    orders = ("half", "interleaved") if kept[0].dtype not in BYTES else ("half",)
    found = []
    for side in kept:
        rope = {"k": Rope(draw(st.sampled_from(orders)), rotated) if rotated else Rope(), "v": Rope()}
        planes = [Plane(name, width, side.dtype, rope=rope[name]) for name, width in widths.items()]
        if side.scales:
            planes += [Plane(f"{name}_scale", 1, "float32", side.scales) for name in widths]
        found.append(Geometry(layers, heads, tuple(draw(st.permutations(planes)))))
    return found[0], found[1]


@st.composite
def extents(draw: st.DrawFn, geometry: Geometry) -> Extent:
    head, layer = draw(st.integers(0, geometry.kv_heads - 1)), draw(st.integers(0, geometry.layers - 1))
    return Extent(
        head, draw(st.integers(head + 1, geometry.kv_heads)), layer, draw(st.integers(layer + 1, geometry.layers))
    )


@st.composite
def layouts(draw: st.DrawFn, geometry: Geometry, page: int, fixed: frozenset[str], has_blocks: bool) -> Layout:
    """A row that has a place for each plane, in any nesting."""
    inside = [plane for plane in geometry.planes if plane.name not in fixed]
    kinds = ["plane", "layer plane", "plane layer"]
    if len({plane.itemsize for plane in inside}) == 1 or all(plane.width % 4 == 0 for plane in geometry.numbers):
        kinds += ["", "layer"]  # side by side; scales then begin at a multiple of their size
    separate = draw(st.sampled_from(kinds))
    words = ["head", *(["block"] if has_blocks else []), *([] if "layer" in separate else ["layer"])]
    apart = "plane" in separate
    shareable = list(words)
    if not apart and any(plane.per == "tensor" for plane in inside):
        shareable.remove("head")
    shared = draw(st.lists(st.sampled_from(shareable), unique=True)) if shareable else []
    groups = {}
    for plane in inside:
        own = [word for word in words if word not in shared]
        for axis, size in (("token", page), ("dim", plane.width)):
            tile = draw(st.sampled_from([n for n in (1, 2, 3, 4, 8) if size % n == 0]))
            own += draw(st.sampled_from(([axis], [f"{axis}/{tile}", f"{axis}%{tile}"])))
        groups[plane.name] = " ".join(draw(st.permutations(own)))
    regions = [f"({name}: {path})" for name, path in draw(st.permutations(sorted(groups.items())))]
    if len({plane.width for plane in inside}) == 1 and draw(st.booleans()):
        regions = [f"(*: {groups[inside[0].name]})"]
    return Layout("random", f"{separate} | {' '.join(shared)} {' '.join(regions)}")


@dataclass
class Arena:
    """One piece of memory for everything, so that an address is an index."""

    memory: torch.Tensor
    used: int = 64

    @classmethod
    def of(cls, nbytes: int, seed: int) -> Arena:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator))

    def take(self, nbytes: int) -> Buffer:
        """The next `nbytes`, with a gap before them."""
        start = -(-(self.used + 8) // 4) * 4
        self.used = start + nbytes
        assert self.used <= len(self.memory)
        return Buffer(self.memory.data_ptr() + start, nbytes, self.memory)


@st.composite
def views(draw: st.DrawFn, arena: Arena, geometry: Geometry, kept: Kept, extent: Extent, tokens: int) -> View:
    """`tokens` tokens somewhere in a random pool; scales are numbers of a sensible size."""
    start = draw(st.integers(0, 9))
    has_blocks = draw(st.booleans())
    stop = start + tokens
    page = draw(st.sampled_from((1, 2, 4, 8, 12)) if has_blocks else st.integers(stop, stop + 3))
    table = list(range(-(-stop // page) + 1)) if has_blocks else [0]
    random.Random(draw(st.integers(0, 999))).shuffle(table)
    fixed = frozenset(plane.name for plane in geometry.planes if plane.is_scale and kept.fixed)
    layout = draw(layouts(geometry, page, fixed, has_blocks))
    made = arrange(layout, geometry, extent, page, len(table), {}, fixed)
    spans: dict[int, int] = {}
    for strides in made.planes:
        if strides.name not in fixed:
            for layer in range(extent.layers if strides.buffers else 1):
                spans[strides.buffer + layer * strides.buffers] = strides.span
    buffers = [arena.take(spans[index]) for index in sorted(spans)]
    scales = {name: [arena.take(4 * extent.heads) for _ in range(extent.layers)] for name in fixed}
    pool = layout.pool(geometry, extent, page=page, blocks=len(table), buffers=buffers, scales=scales)
    for plane in geometry.planes:
        if plane.is_scale and plane.dtype == "float32":
            put_scales(pool, plane, draw(st.integers(0, 3)))
    return pool.view(table, start, stop)


def put_scales(pool: Pool, plane: Plane, seed: int) -> None:
    """Scales of a sensible size (seed 0: whatever bits lie there), the same in all blocks where a block has one."""
    address = next(address for address in pool.planes if address.name == plane.name)
    source = random.Random(seed)
    for base in address.bases:
        per_head = [source.lognormvariate(-3, 2) for _ in range(pool.extent.heads)]
        for block, head, token in product(range(pool.blocks), range(pool.extent.heads), range(pool.page)):
            scale = per_head[0 if plane.per == "tensor" else head]
            if plane.per == "token":
                if seed == 0:
                    return
                scale = source.lognormvariate(-3, 2)
            at = base + block * address.block + head * address.head + digits_offset(address.token, token)
            ctypes.c_float.from_address(at).value = scale


assert set(FLOATS + FP8 + BYTES) == set(DTYPES)
