"""Calls of the C entry without anything in between: one that is right, and random ones with what they must write."""

from __future__ import annotations

import ctypes
import random
from array import array
from dataclasses import dataclass, field

import numpy as np

from kvlingua.layouts import native

COPY, COPY_EQUAL, CAST, QUANTISE = range(4)
F32, F16, BF16, E4M3FN, E4M3FNUZ, E5M2, BYTE = range(1, 8)


def library() -> ctypes.CDLL:
    """The library that is tested."""
    loaded = native.load(native.library_path())
    assert loaded.library is not None, loaded.description
    return loaded.library


def run(plan: native.CPlan) -> int:
    """What kvl_convert returns."""
    return int(library().kvl_convert(plan))


class Call:
    """A right call, to be spoiled: 8 tokens from blocks 1, 0 of a source to block 0 of a target; 2 layers, 3 heads, one
    plane of 8 numbers of 2 bytes, heads outside tokens on both sides. Both sides have a scale for each layer."""

    def __init__(self) -> None:
        self.source = np.arange(2 * 2 * 3 * 4 * 8, dtype=np.uint16)  # layer, block, head, token, dim
        self.target = np.zeros(2 * 2 * 3 * 8 * 8, dtype=np.uint16)  # two blocks, of which one is named
        self.scales = np.ones(4, dtype=np.float32)
        scales = self.scales.ctypes.data
        a, b = self.source.ctypes.data, self.target.ctypes.data
        item = 2
        self.bases = [array("Q", [a, a + 384]), array("Q", [b, b + 768])]
        self.scale_bases = [array("Q", [scales, scales + 4]), array("Q", [scales + 8, scales + 12])]
        self.tables = [array("q", [1, 0]), array("q", [0])]
        self.spans = [
            array("Q", [a, a + self.source.nbytes, 1 << 62, (1 << 62) + 8]),
            array("Q", [b, b + self.target.nbytes]),
        ]
        self.planes = (native.Plane * 1)()
        plane = self.planes[0]
        plane.source_type = plane.target_type = F16
        plane.factor, plane.heads, plane.dims = 1.0, 3, 1
        plane.dim[0] = native.Axis(8, item, item)
        plane.source = native.Side(self.bases[0].buffer_info()[0], 3 * 4 * 8 * item, 4 * 8 * item, 8 * item)
        plane.target = native.Side(self.bases[1].buffer_info()[0], 3 * 8 * 8 * item, 8 * 8 * item, 8 * item)
        self.plan = native.CPlan(
            threads=1,
            tokens=8,
            heads=3,
            layers=2,
            planes=1,
            plane=self.planes,
            source=native.Tokens(self.tables[0].buffer_info()[0], 2, 2, 4, 0, self.spans[0].buffer_info()[0], 1),
            target=native.Tokens(self.tables[1].buffer_info()[0], 1, 2, 8, 0, self.spans[1].buffer_info()[0], 1),
        )

    def with_scales(self, op: int, source: int = F16, target: int = F16) -> None:
        """Make the plane one whose scales matter: their memory becomes the source's second span and the target's."""
        plane = self.planes[0]
        plane.op, plane.source_type, plane.target_type = op, source, target
        plane.source_scale = native.Side(self.scale_bases[0].buffer_info()[0])
        plane.target_scale = native.Side(self.scale_bases[1].buffer_info()[0])
        scales = self.scales.ctypes.data
        for side, view, at in ((0, self.plan.source, scales), (1, self.plan.target, scales + 8)):
            begin, end = self.spans[side][:2]
            pairs = sorted([(begin, end), (at, at + 8)])
            self.spans[side] = array("Q", [address for pair in pairs for address in pair])
            view.span, view.spans = self.spans[side].buffer_info()[0], 2

    def axis(self, **fields: int) -> None:
        """Set fields of the plane's first axis."""
        for name, value in fields.items():
            setattr(self.planes[0].dim[0], name, value)


TYPES = {1: BYTE, 2: BF16, 4: F32}
"""Item size -> a type of that size: bytes, bfloat16, float32."""
SLACK = 64
"""Bytes before and behind what a call uses, which must stay as they are."""


@dataclass
class End:
    """One side of a call: a memory and the byte offset of every element that is converted."""

    page: int
    start: int
    table: list[int]
    blocks: int
    memory: np.ndarray
    offsets: list[np.ndarray] = field(default_factory=list)
    """Per plane [layer, token, head, dims...]"""
    sides: list[tuple[list[int], int, int, int, int, int, list[int]]] = field(default_factory=list)
    """Per plane: bases (offsets) per layer, strides of block, head, token, tile_tokens, tile, dims"""


class RandomCall:
    """A call of `kvl_convert` with any strides that don't make elements meet.

    seed: decides everything. Realistic and strange orders of axes, gaps along any of them, tiles of tokens on either
    side, planes that share blocks or lie apart, blocks in random order, starts inside blocks.
    """

    def __init__(self, seed: int, *, tokens: int = 0, heads: int = 0) -> None:
        choose = random.Random(seed)
        self.layers, self.heads = choose.randint(1, 3), heads or choose.choice((1, 2, 3, 8))
        self.tokens = tokens or choose.choice((1, 2, 15, 16, 33, 64, 100))
        count = choose.randint(1, 3)
        item = choose.choice((1, 2, 2, 4))
        alike = choose.random() < 0.6
        dims = [self._dims(choose)] * count if alike else [self._dims(choose) for _ in range(count)]
        items = [item] * count if alike else [choose.choice((1, 2, 4)) for _ in range(count)]
        heads = [self.heads if alike or choose.random() < 0.8 else 1 for _ in range(count)]
        self.items, self.dims, self.plane_heads = items, dims, heads
        self.ends = [self._end(choose, alike, target=side == 1) for side in range(2)]
        self.keep: list[array[int]] = []

    @staticmethod
    def _dims(choose: random.Random) -> list[int]:
        return choose.choice(
            ([128], [64], [7], [1], [2, 32], [8, 8], [16, 8], [3, 5, 2], [2, 2, 16], [4, 2, 2, 8], [80], [33], [4, 16])
        )

    def _end(self, choose: random.Random, alike: bool, *, target: bool) -> End:
        page = choose.choice((1, 2, 16, 16, 32, 64, 100, 13))
        start = choose.choice((0, 0, 0, 1, 3, 16, 20))
        entries = (start + self.tokens - 1) // page + 1
        blocks = entries + choose.randint(0, 3)
        table = list(range(blocks))
        if choose.random() < 0.7:
            choose.shuffle(table)
        table = table[:entries]
        if not target and choose.random() < 0.1:
            table = [choose.randrange(blocks) for _ in table]
        end = End(page, start, table, blocks, np.empty(0, np.uint8))
        size = SLACK + choose.choice((0, 0, 4, 16, 32))
        groups = [range(len(self.dims))] if alike else [[i] for i in range(len(self.dims))]
        for planes in groups:
            size += -size % 4
            size = self._place(choose, end, list(planes), size)
        end.memory = np.random.default_rng(choose.randrange(1 << 30)).integers(0, 256, size + SLACK, dtype=np.uint8)
        return end

    def _place(self, choose: random.Random, end: End, planes: list[int], base: int) -> int:
        """Give the planes, which are alike, strides from offset `base` on; returns where they end."""
        item, dims, heads = self.items[planes[0]], self.dims[planes[0]], self.plane_heads[planes[0]]
        tile = choose.choice((0, 0, 0, 2, 4, 16, 8))
        # Tiles beyond a page's end are there, unused.
        sizes = {"layer": self.layers, "plane": len(planes), "block": end.blocks, "head": heads}
        sizes |= {"tile": -(-end.page // tile), "token": tile} if tile else {"token": end.page}
        sizes |= {f"dim{i}": size for i, size in enumerate(dims)}
        order = ["layer", "plane", "block", "head", "tile", "token", *(f"dim{i}" for i in range(len(dims)))]
        order = [axis for axis in order if axis in sizes]
        kind = choose.random()
        if kind < 0.3:
            choose.shuffle(order)
        elif kind < 0.8:
            for _ in range(choose.randint(1, 3)):
                i = choose.randrange(len(order) - 1)
                order[i], order[i + 1] = order[i + 1], order[i]
        gaps = (0, 0, 0, 0, 0, 0, item, 3 * item, 64) if choose.random() < 0.5 else (0,)
        strides, extent = {}, item
        for axis in reversed(order):
            strides[axis] = extent + choose.choice(gaps)
            extent = strides[axis] * sizes[axis]
        position = np.arange(end.start, end.start + self.tokens)
        t = position % end.page
        token = t // tile * strides["tile"] + t % tile * strides["token"] if tile else t * strides["token"]
        token = token + np.array(end.table)[position // end.page] * strides["block"]
        for i in range(len(planes)):
            bases = [base + i * strides["plane"] + layer * strides["layer"] for layer in range(self.layers)]
            steps = [strides[f"dim{j}"] for j in range(len(dims))]
            where = np.array(bases)[:, None, None] + token[None, :, None] + np.arange(heads) * strides["head"]
            for size, step in zip(dims, steps, strict=True):
                where = where[..., None] + np.arange(size) * step
            end.offsets.append(where)
            end.sides.append(
                (bases, strides["block"], strides["head"], strides["token"], tile, strides.get("tile", 0), steps)
            )
        return base + extent

    def wanted(self) -> np.ndarray:
        """The target's memory after the call."""
        source, target = self.ends
        memory = target.memory.copy()
        for item, old, new in zip(self.items, source.offsets, target.offsets, strict=True):
            for byte in range(item):
                memory[new + byte] = source.memory[old + byte]
        return memory

    def plan(self, memory: np.ndarray, *, threads: int = 1, kernels: int = 0, stream_bytes: int = 0) -> native.CPlan:
        """The call, writing to `memory`, a copy of the target's."""
        self.keep = []
        addresses = [self.ends[0].memory.ctypes.data, memory.ctypes.data]
        planes = (native.Plane * len(self.items))()
        for i, plane in enumerate(planes):
            plane.source_type = plane.target_type = TYPES[self.items[i]]
            plane.factor, plane.heads, plane.dims = 1.0, self.plane_heads[i], len(self.dims[i])
            for j, size in enumerate(self.dims[i]):
                plane.dim[j] = native.Axis(size, *(end.sides[i][6][j] for end in self.ends))
            plane.source, plane.target = (
                native.Side(self._array("Q", [at + base for base in end.sides[i][0]]), *end.sides[i][1:6])
                for at, end in zip(addresses, self.ends, strict=True)
            )
        views = (
            native.Tokens(
                self._array("q", end.table),
                len(end.table),
                end.blocks,
                end.page,
                end.start,
                self._array("Q", [at, at + len(end.memory)]),
                1,
            )
            for at, end in zip(addresses, self.ends, strict=True)
        )
        return native.CPlan(
            threads, kernels, stream_bytes, self.tokens, self.heads, self.layers, len(planes), planes, *views
        )

    def _array(self, kind: str, numbers: list[int]) -> int:
        self.keep.append(array(kind, numbers))
        return self.keep[-1].buffer_info()[0]
