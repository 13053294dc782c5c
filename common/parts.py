"""The parts of an object that have a checksum each: one plane of one shard."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from kvlingua.common.header import CHECKSUM_DIGITS, tensor_shape, tensor_shards
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import ITEMSIZE, Extent


@dataclass(frozen=True, slots=True)
class Part:
    """One plane of one shard.

    runs: where it lies in the object's data (first byte, end), in the order in which its checksum takes them. place:
    where the checksum stands in the header.
    """

    plane: str
    shard: Extent
    runs: tuple[tuple[int, int], ...]
    place: slice


def parts_of(namespace: Namespace, extent: Extent, places: Mapping[str, slice]) -> tuple[Part, ...]:
    """All parts of an object of `extent`, plane after plane in the order of their checksums.

    places: where in the header the field `checksums_<plane>` stands.
    """
    parts = []
    base = 0
    for plane in namespace.geometry.planes:
        shape = tensor_shape(plane, extent, namespace.chunk_tokens)
        layer = prod(shape[2:]) * ITEMSIZE[plane.dtype]
        digits = places[f"checksums_{plane.name}"].start
        for shard in tensor_shards(plane, extent, namespace.grid):
            first = shard.head_start - extent.head_start
            rows = (0, 1) if plane.per == "tensor" else (first, first + shard.heads)
            runs = tuple(_runs(rows, extent, shard, base, layer))
            parts.append(Part(plane.name, shard, runs, slice(digits, digits + CHECKSUM_DIGITS)))
            digits += CHECKSUM_DIGITS
        base += prod(shape) * ITEMSIZE[plane.dtype]
    return tuple(parts)


def _runs(rows: tuple[int, int], extent: Extent, shard: Extent, base: int, layer: int) -> Iterator[tuple[int, int]]:
    """One run if the shard has all layers of the object, else one for each row of the tensor. `layer`: its bytes."""
    row = extent.layers * layer
    if shard.layers == extent.layers:
        yield base + rows[0] * row, base + rows[1] * row
        return
    for number in range(*rows):
        start = base + number * row + (shard.layer_start - extent.layer_start) * layer
        yield start, start + shard.layers * layer
