"""The shard grid: where objects begin and end, and which objects may cover what a reader needs."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd
from typing import TypeAlias

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.ranks import STAGE_RULES, Split
from kvlingua.layouts.geometry import Extent, Geometry

MAX_RANKS = 8  # the ranks of tensor parallel sizes up to this own whole shards, where the heads can be divided at all
TENSOR_SIZES = (1, 2, 4, 8)
PIPELINE_SIZES = (1, 2, 4)

Cover: TypeAlias = tuple[Extent, ...]
"""Objects that together hold what a reader needs."""


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


@lru_cache(maxsize=256)
def covers(grid: ShardGrid, needed: Extent) -> tuple[Cover, ...]:
    """Sets of objects that hold `needed`, the cheapest to read first: one for each way to share the writing.

    One object of exactly that extent, widened to whole shards; and for every split of TP 1, 2, 4, 8 and PP 1, 2, 4
    whose ranks own whole shards the objects of those ranks that hold a part of `needed`.
    """
    found: set[Cover] = {(grid.aligned(needed),)}
    for tensor, pipeline, rule in product(TENSOR_SIZES, PIPELINE_SIZES, STAGE_RULES):
        if grid.kv_heads // grid.heads_per_shard % tensor == 0 and pipeline <= grid.layers:
            extents = Split.of(grid.kv_heads, grid.layers, tensor, pipeline, rule).extents()
            if all(grid.aligned(extent) == extent for extent in extents):
                found.add(tuple(extent for extent in extents if extent.intersect(needed)))
    return tuple(sorted(found, key=lambda cover: (sum(map(_cells, cover)), len(cover), cover)))


@lru_cache(maxsize=256)
def candidates(grid: ShardGrid, needed: Extent) -> tuple[Extent, ...]:
    """All extents that stand in a cover, each once: the names that a reader asks for, 195 at most.

    For a reader of everything they are 15 where objects hold all layers, 105 where PP 2 and 4 own whole shards, and
    195 where they do so by both engines' rules for layers that don't divide evenly.
    """
    return tuple(dict.fromkeys(extent for cover in covers(grid, needed) for extent in cover))


def cover_among(grid: ShardGrid, needed: Extent, held: Collection[Extent]) -> Cover | None:
    """The cheapest cover of `needed` that consists of extents in `held`; None if there is none.

    A writer skips what other objects hold, so that a chunk may have been shared by several splits. Only then do
    objects of a cover overlap.
    """
    if not held:
        return None
    for cover in covers(grid, needed):
        if all(extent in held for extent in cover):
            return cover
    left, chosen = set(grid.shards(grid.aligned(needed))), []
    for extent in sorted(held, key=lambda extent: (-_common(extent, needed), _cells(extent), extent)):
        gained = {shard for shard in left if extent.contains(shard)}
        if gained:
            chosen.append(extent)
            left -= gained
    return None if left else tuple(sorted(chosen))


def _cells(extent: Extent) -> int:
    return extent.heads * extent.layers


def _common(one: Extent, other: Extent) -> int:
    both = one.intersect(other)
    return 0 if both is None else _cells(both)


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
