"""The header of a stored object: it follows from what the object holds, but for a few fields of fixed width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import xxhash

from kvlingua.common.errors import ContainerError, UnsupportedError
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.chain import DIGEST_BYTES
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.common.identity.namespace import FORMAT_VERSION, Namespace
from kvlingua.layouts.geometry import ITEMSIZE, Extent, Plane

ALIGNMENT = 64
MAX_HEADER_BYTES = 1 << 20
# Of one object. Models have up to 128 layers x 128 kv heads: 65,536 runs, with K, V, scales, and shards of one layer.
MAX_RUNS = 1 << 17
CHECKSUM_DIGITS = 32  # hexadecimal, of an xxh3-128
POSITION_DIGITS = 10  # decimal, of a token position
FORMAT = "kvlingua"
DTYPES = {  # as safetensors calls them
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
}


def tensor_shape(plane: Plane, extent: Extent, chunk_tokens: int) -> tuple[int, int, int, int]:
    """`[head, layer, token, dim]` of a plane's tensor: size 1 where one value is for all heads, or all tokens."""
    heads = 1 if plane.per == "tensor" else extent.heads
    return heads, extent.layers, chunk_tokens if plane.per == "token" else 1, plane.width


def tensor_shards(plane: Plane, extent: Extent, grid: ShardGrid) -> list[Extent]:
    """The parts of a plane's tensor that have a checksum each: the shards of `extent`, heads slowest.

    Where one value is for all heads they are cut by layers only, so that every shard of those layers shares one.
    """
    whole = replace(grid, heads_per_shard=extent.heads)
    return (whole if plane.per == "tensor" else grid).shards(extent)


@dataclass(frozen=True)
class HeaderTemplate:
    """A whole header, its length field included, with zeros where objects of one namespace and extent differ.

    `places`: those fields, in the order in which they stand in the header.
    """

    data: bytes
    places: Mapping[str, slice]

    @classmethod
    def of(cls, namespace: Namespace, extent: Extent) -> "HeaderTemplate":
        """Of the objects that hold `extent`, a union of whole shards. UnsupportedError beyond the bounds."""
        geometry, grid = namespace.geometry, namespace.grid
        _check_bounds(len(geometry.planes), extent, grid)
        widths = {"chain": 2 * DIGEST_BYTES, "first_token": POSITION_DIGITS, "header_checksum": CHECKSUM_DIGITS}
        for plane in geometry.planes:
            widths[f"checksums_{plane.name}"] = CHECKSUM_DIGITS * len(tensor_shards(plane, extent, grid))
        metadata = {name: "0" * width for name, width in widths.items()} | {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "heads": f"{extent.head_start}-{extent.head_stop}",
            "layers": f"{extent.layer_start}-{extent.layer_stop}",
            "namespace": namespace.json().decode(),
            "namespace_digest": namespace.digest,
        }
        header: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        for plane in geometry.planes:
            shape = tensor_shape(plane, extent, namespace.chunk_tokens)
            end = offset + prod(shape) * ITEMSIZE[plane.dtype]
            header[plane.name] = {"dtype": DTYPES[plane.dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        try:
            text = canonical_json.encode(header, max_bytes=MAX_HEADER_BYTES - ALIGNMENT - 8)
        except ValueError as error:
            raise UnsupportedError("header", f"the header can't be written: {error}") from None
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        data = len(text).to_bytes(8, "little") + text
        places = {}
        for name, width in sorted(widths.items()):
            # A quote inside the namespace's JSON has a backslash before it, so this stands in one place only.
            start = data.index(f'"{name}":"'.encode()) + len(name) + 4
            places[name] = slice(start, start + width)
        return cls(data, places)

    def matches(self, head: memoryview) -> bool:
        """Whether `head`, of this template's length, is equal to it outside the fields."""
        start = 0
        for place in [*self.places.values(), slice(len(self.data), len(self.data))]:
            if bytes(head[start : place.start]) != self.data[start : place.start]:
                return False
            start = place.stop
        return True

    def value(self, head: memoryview, name: str) -> bytes:
        """What stands in a field."""
        return bytes(head[self.places[name]])

    def checksum(self, head: memoryview) -> bytes:
        """xxh3-128 of the header with 32 zeros (the digit) where this checksum stands, in hexadecimal."""
        place = self.places["header_checksum"]
        checksum = xxhash.xxh3_128(head[: place.start])
        checksum.update(b"0" * CHECKSUM_DIGITS)
        checksum.update(head[place.stop :])
        return checksum.hexdigest().encode()


def _check_bounds(planes: int, extent: Extent, grid: ShardGrid) -> None:
    """Raise UnsupportedError for more checksums or runs than an object may have, before one of them is made."""
    cuts = -(-extent.layers // grid.layers_per_shard)
    shards = (extent.heads // grid.heads_per_shard) * cuts
    if shards * CHECKSUM_DIGITS * planes > MAX_HEADER_BYTES // 2:
        raise UnsupportedError("shard_grid", f"{shards} shards in one object: use more layers per shard")
    runs = extent.heads * cuts * planes  # of each shard one per head, as it doesn't hold all layers
    if cuts > 1 and runs > MAX_RUNS:
        raise UnsupportedError("shard_grid", f"{runs} runs of bytes in one object: use more layers per shard")


def header_length(start: bytes | memoryview, size: int) -> int:
    """How many bytes the header of an object takes, from its first 8 bytes and size; bounded. ContainerError."""
    if len(start) < 8 or size < 8:
        raise ContainerError("truncated", f"an object of {size} bytes can't hold a header")
    length = 8 + int.from_bytes(bytes(start[:8]), "little")
    if length > MAX_HEADER_BYTES:
        raise ContainerError("header", f"a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    if length > size:
        raise ContainerError("truncated", f"a header of {length} bytes in an object of {size}")
    if length % ALIGNMENT:
        raise ContainerError("header", f"data that begins at byte {length}, not at a multiple of {ALIGNMENT}")
    return length
