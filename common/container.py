"""One stored object: a safetensors file whose every byte, checksums aside, follows from what it holds.

docs/format/container.md is the specification. A writer fills in a prepared header; a reader compares the header with
the one it predicts, then checks the checksums of the shards it needs. `parse_header` is for readers that predict
nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import xxhash

from kvlingua.common.errors import ContainerError, IdentityError, UnsupportedError
from kvlingua.common.header import FORMAT, MAX_HEADER_BYTES, POSITION_DIGITS, HeaderTemplate, header_length
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.chain import DIGEST_BYTES
from kvlingua.common.identity.namespace import FORMAT_VERSION, Namespace
from kvlingua.common.parts import Part, parts_of
from kvlingua.layouts.geometry import Extent

_RANGE = re.compile(r"(0|[1-9][0-9]{0,5})-([1-9][0-9]{0,5})")
_METADATA = ("chain", "first_token", "format", "format_version", "header_checksum", "heads", "layers", "namespace")


@dataclass(frozen=True)
class Container:
    """The objects of one namespace and extent: all of one size, their headers differ in fixed places only.

    `extent`: a union of whole shards of `namespace.grid`, else UnsupportedError. A tensor `[head, layer, token, dim]`
    for each plane of `namespace.geometry`, dense, one after the other from byte `header_bytes` on: in memory, objects
    that lie one after the other are a pool of layout `canonical` with a block stride of `object_bytes`.
    """

    namespace: Namespace
    extent: Extent
    template: HeaderTemplate = field(init=False, repr=False, compare=False)
    header_bytes: int = field(init=False, repr=False)
    data_bytes: int = field(init=False, repr=False)
    object_bytes: int = field(init=False, repr=False)
    _parts: tuple[Part, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.namespace.grid.check_writer(self.extent)
        template = HeaderTemplate.of(self.namespace, self.extent)
        parts = parts_of(self.namespace, self.extent, template.places)
        data_bytes = max(stop for part in parts for _, stop in part.runs)
        object.__setattr__(self, "template", template)
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "header_bytes", len(template.data))
        object.__setattr__(self, "data_bytes", data_bytes)
        object.__setattr__(self, "object_bytes", len(template.data) + data_bytes)

    def parts(self, needed: Extent) -> tuple[Part, ...]:
        """Of every plane the shards that a reader of `needed` verifies: those that hold any of it."""
        return tuple(part for part in self._parts if part.shard.intersect(needed))

    def write_header(self, into: memoryview, digest: bytes, chunk_index: int, data: memoryview) -> None:
        """Fill `into`, `header_bytes` long, for the object whose tensors are `data`, `data_bytes` long.

        `digest`: the chunk's chain digest. `chunk_index`: which chunk of its sequence it is, from 0.
        Raises ContainerError for buffers of another size.
        """
        if into.nbytes != self.header_bytes or data.nbytes != self.data_bytes:
            raise ContainerError(
                "size",
                f"a header of {self.header_bytes} and data of {self.data_bytes} bytes expected, "
                f"not {into.nbytes} and {data.nbytes}",
            )
        position = chunk_index * self.namespace.chunk_tokens
        if len(digest) != DIGEST_BYTES or not 0 <= position < 10**POSITION_DIGITS:
            raise ContainerError("identity", f"a digest of {len(digest)} bytes for chunk {chunk_index}")
        data = data.cast("B")
        header = bytearray(self.template.data)
        header[self.template.places["chain"]] = digest.hex().encode()
        header[self.template.places["first_token"]] = b"%0*d" % (POSITION_DIGITS, position)
        for part in self._parts:
            header[part.place] = _checksum(data[start:stop] for start, stop in part.runs)
        header[self.template.places["header_checksum"]] = self.template.checksum(memoryview(header))
        into.cast("B")[:] = header

    def verify(self, obj: memoryview, digest: bytes, needed: Extent) -> None:
        """Raise ContainerError unless `obj` is the object of this namespace, extent and chain digest, undamaged.

        The whole header is checked, and of the data the shards that `needed` touches. No data is copied.
        """
        obj = obj.cast("B")
        if obj.nbytes != self.object_bytes:
            raise ContainerError("size", f"an object of {self.object_bytes} bytes expected, not {obj.nbytes}")
        if not self.extent.contains(needed):
            raise ContainerError("extent", f"{needed} is wanted of an object that holds {self.extent}")
        head = obj[: self.header_bytes]
        if not self.template.matches(head):
            # Nothing of it is parsed: this runs in engines, and may be anybody's bytes. `parse_header` would say more.
            raise ContainerError(
                "identity", "the object belongs to another namespace, or holds another extent, or its header is damaged"
            )
        chain = self.template.value(head, "chain")
        if chain != digest.hex().encode():
            raise ContainerError("identity", f"the object's chain digest is {chain!r}, not {digest.hex()}")
        self.verify_header(head)
        data = obj[self.header_bytes :]
        for part in self.parts(needed):
            verify_part(part, head, (data[start:stop] for start, stop in part.runs))

    def verify_header(self, head: memoryview) -> int:
        """The chunk's first token, from a header that fits the template. Raises ContainerError if it is damaged."""
        digits = self.template.value(head, "first_token")
        if not digits.isdigit() or int(digits) % self.namespace.chunk_tokens:  # of bytes: the ten ASCII digits only
            raise ContainerError("header", f"{digits!r} is not where a chunk of {self.namespace.chunk_tokens} begins")
        if self.template.value(head, "header_checksum") != self.template.checksum(head):
            raise ContainerError("checksum", "the header is damaged: its checksum doesn't fit")
        return int(digits)


def verify_part(part: Part, head: memoryview, data: Iterable[memoryview]) -> None:
    """Raise ContainerError unless `data`, the bytes of a part's runs in any pieces, has the checksum in the header."""
    if _checksum(data) != head[part.place]:
        raise ContainerError("checksum", f"plane {part.plane} is damaged in {part.shard}: its checksum doesn't fit")


@dataclass(frozen=True)
class ParsedHeader:
    """What an object says about itself. `container.verify(obj, chain, container.extent)` then checks its data."""

    container: Container
    chain: bytes
    first_token: int


def parse_header(head: bytes | memoryview, size: int) -> ParsedHeader:
    """Read a header without knowing what it should say; bounds are checked before anything is built.

    `head`: the object's first bytes, the whole header at least (`header_length` tells how many from the first 8).
    `size`: of the whole object. The header must be, to the byte, the one that a writer makes for what it says it holds.
    Raises ContainerError for everything else.
    """
    length = header_length(head, size)
    if len(head) < length:
        raise ContainerError("truncated", f"{len(head)} of the header's {length} bytes")
    head = memoryview(bytes(head[:length]))
    metadata = _metadata(head[8:])
    try:
        namespace = Namespace.from_json(metadata["namespace"].encode())
        container = Container(namespace, _extent(metadata))
    except (IdentityError, UnsupportedError, UnicodeEncodeError) as error:
        raise ContainerError("namespace", f"the object's namespace can't be used: {error}") from None
    if container.object_bytes != size:
        raise ContainerError("size", f"{container.object_bytes} bytes follow from the header, the object has {size}")
    if container.header_bytes != length or not container.template.matches(head):
        raise ContainerError("header", "the header is not the one that follows from what the object says it holds")
    first_token = container.verify_header(head)
    try:
        chain = bytes.fromhex(metadata["chain"])
    except ValueError:
        chain = b""
    if len(chain) != DIGEST_BYTES or chain.hex() != metadata["chain"]:
        raise ContainerError("header", f"the chain digest is not {2 * DIGEST_BYTES} hexadecimal digits")
    return ParsedHeader(container, chain, first_token)


def _metadata(text: memoryview) -> dict[str, str]:
    try:
        values = canonical_json.decode(text, max_bytes=MAX_HEADER_BYTES)
    except ValueError as error:
        raise ContainerError("header", f"the header is not JSON: {error}") from None
    metadata = values.get("__metadata__") if isinstance(values, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ContainerError("header", "the header has no metadata")
    missing = [name for name in _METADATA if name not in metadata]
    if missing or metadata["format"] != FORMAT:
        raise ContainerError("foreign", f"not an object of kvlingua: no {', '.join(missing) or 'format ' + FORMAT}")
    if metadata["format_version"] != str(FORMAT_VERSION):
        version = metadata["format_version"]
        raise ContainerError("version", f"format version {version[:20]!r}: this kvlingua reads {FORMAT_VERSION}")
    return metadata


def _extent(metadata: dict[str, str]) -> Extent:
    heads, layers = _RANGE.fullmatch(metadata["heads"]), _RANGE.fullmatch(metadata["layers"])
    numbers = [int(number) for match in (heads, layers) if match is not None for number in match.groups()]
    if len(numbers) != 4 or numbers[0] >= numbers[1] or numbers[2] >= numbers[3]:
        raise ContainerError("header", "heads and layers are two ranges such as 0-8")
    return Extent(*numbers)


def _checksum(pieces: Iterable[memoryview]) -> bytes:
    """xxh3-128 of the pieces, one after the other, in hexadecimal."""
    checksum = xxhash.xxh3_128()
    for piece in pieces:
        checksum.update(piece)
    return checksum.hexdigest().encode()
