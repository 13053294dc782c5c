"""The shard grid: where objects begin and end, and which objects may cover what a reader needs."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.geometry import Extent, Geometry

MAX_RANKS = 8  # the ranks of tensor parallel sizes up to this own whole shards, where the heads can be divided at all


@dataclass(frozen=True, slots=True)
class ShardGrid:
    """A model of `kv_heads` x `layers`, cut every `heads_per_shard` heads and every `layers_per_shard` layers.

    The heads always divide evenly; the last shard of layers may be shorter.
    """

    kv_heads: int
    layers: int
    heads_per_shard: int
    layers_per_shard: int

    @classmethod
    def of(cls, geometry: Geometry, layers_per_shard: int | None = None) -> "ShardGrid":
        """The grid of a model: kv_heads / gcd(kv_heads, 8) heads, and all layers unless told otherwise."""
        if layers_per_shard is not None and layers_per_shard < 1:
            raise UnsupportedError("shard_grid", f"a shard holds at least one layer, not {layers_per_shard}")
        layers = min(layers_per_shard or geometry.layers, geometry.layers)
        heads = geometry.kv_heads // gcd(geometry.kv_heads, MAX_RANKS)
        return cls(geometry.kv_heads, geometry.layers, heads, layers)

    @property
    def full(self) -> Extent:
        """The whole model."""
        return Extent(0, self.kv_heads, 0, self.layers)

    def aligned(self, extent: Extent) -> Extent:
        """The smallest union of whole shards around `extent`."""
        heads, layers = self.heads_per_shard, self.layers_per_shard
        return Extent(
            extent.head_start // heads * heads,
            -(-extent.head_stop // heads) * heads,
            extent.layer_start // layers * layers,
            min(-(-extent.layer_stop // layers) * layers, self.layers),
        )

    def shards(self, extent: Extent) -> list[Extent]:
        """The whole shards that `extent`, a union of them, consists of: heads slowest, layers fastest."""
        return [
            Extent(head, head + self.heads_per_shard, layer, min(layer + self.layers_per_shard, extent.layer_stop))
            for head in range(extent.head_start, extent.head_stop, self.heads_per_shard)
            for layer in range(extent.layer_start, extent.layer_stop, self.layers_per_shard)
        ]

    def check_writer(self, extent: Extent) -> None:
        """Raise UnsupportedError, with the arithmetic, unless `extent` is a union of whole shards of this model."""
        if not self.full.contains(extent):
            raise UnsupportedError(
                "shard_grid",
                f"a writer with kv heads {extent.head_start}-{extent.head_stop} and layers {extent.layer_start}-"
                f"{extent.layer_stop} lies outside a model of {self.kv_heads} kv heads and {self.layers} layers",
            )
        aligned = self.aligned(extent)
        if (aligned.head_start, aligned.head_stop) != (extent.head_start, extent.head_stop):
            shards = self.kv_heads // self.heads_per_shard
            fitting = [str(ranks) for ranks in range(1, shards + 1) if shards % ranks == 0]
            raise UnsupportedError(
                "shard_grid",
                f"a writer with kv heads {extent.head_start}-{extent.head_stop} of {self.kv_heads} doesn't end on the "
                f"shard grid of {self.heads_per_shard}: use TP {_either(fitting)}",
            )
        if aligned != extent:
            ends = [end for end in (extent.layer_start, extent.layer_stop) if end != self.layers]
            raise UnsupportedError(
                "shard_grid",
                f"a writer with layers {extent.layer_start}-{extent.layer_stop} of {self.layers} doesn't end on the "
                f"shard grid of {self.layers_per_shard}: set layers_per_shard to a number that divides "
                f"{gcd(*ends)}",
            )


def covers(grid: ShardGrid, needed: Extent, last: Extent | None = None) -> Iterator[tuple[Extent, ...]]:
    """Sets of objects that may cover `needed`, the likeliest first; within a set no two overlap.

    First what last hit; then one object of exactly that extent; then single larger ones, in doubling aligned widths;
    then halves, quarters and eighths. A reader probes for these names and never lists a folder.
    """
    seen: set[tuple[Extent, ...]] = set()
    exact = grid.aligned(needed)
    first = [(last,)] if last is not None and last.contains(needed) else []
    for candidate in [*first, (exact,), *_containing(grid, exact), *_parts(grid, exact)]:
        if candidate not in seen:
            seen.add(candidate)
            yield candidate


def _containing(grid: ShardGrid, exact: Extent) -> Iterator[tuple[Extent, ...]]:
    """Single extents around `exact`: the heads of a smaller tensor-parallel size, those layers or all of them."""
    for head_start, head_stop in _widening(exact.head_start, exact.head_stop, grid.heads_per_shard, grid.kv_heads):
        for layers in ((exact.layer_start, exact.layer_stop), (0, grid.layers)):
            yield (Extent(head_start, head_stop, *layers),)


def _widening(start: int, stop: int, step: int, end: int) -> Iterator[tuple[int, int]]:
    """The range itself, then aligned ranges around it of 1, 2, 4, ... steps up to the whole."""
    yield start, stop
    width = step
    while width < end:
        low, high = start // width * width, min((start // width + 1) * width, end)
        if high >= stop:
            yield low, high
        width *= 2
    yield 0, end


def _parts(grid: ShardGrid, exact: Extent) -> Iterator[tuple[Extent, ...]]:
    """`exact` cut into 2, 4 and 8: by heads as tensor parallel ranks do, by layers as pipeline stages do."""
    head_shards = exact.heads // grid.heads_per_shard
    layer_shards = -(-exact.layers // grid.layers_per_shard)
    for by_layer in (1, 2, 4, 8):
        for by_head in (1, 2, 4, 8):
            if by_head * by_layer in (2, 4, 8) and head_shards % by_head == 0 and layer_shards % by_layer == 0:
                heads = exact.heads // by_head
                layers = layer_shards // by_layer * grid.layers_per_shard
                yield tuple(
                    Extent(head, head + heads, layer, min(layer + layers, exact.layer_stop))
                    for head in range(exact.head_start, exact.head_stop, heads)
                    for layer in range(exact.layer_start, exact.layer_stop, layers)
                )


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
