"""Checks one object piece by piece, in memory that doesn't grow with what the object claims to be."""

from collections.abc import Callable, Iterator

from kvlingua.common.container import ParsedHeader, parse_header, verify_part
from kvlingua.common.errors import ContainerError
from kvlingua.common.header import MAX_HEADER_BYTES

_PIECE_BYTES = 1 << 20


def verify_object(size: int, read: Callable[[int, memoryview], bool]) -> ParsedHeader:
    """The header of an object of `size` bytes whose header and every shard are undamaged. Raises ContainerError.

    read(offset, into): fills `into` with the object's bytes from `offset` on; False if it can't, whole.
    """
    piece = memoryview(bytearray(max(MAX_HEADER_BYTES, _PIECE_BYTES)))

    def fetch(offset: int, nbytes: int) -> memoryview:
        into = piece[:nbytes]
        if not read(offset, into):
            raise ContainerError("truncated", "it went, or changed its size, while it was read")
        return into

    def pieces(runs: tuple[tuple[int, int], ...]) -> Iterator[memoryview]:
        for start, stop in runs:
            for offset in range(start, stop, _PIECE_BYTES):
                yield fetch(container.header_bytes + offset, min(_PIECE_BYTES, stop - offset))

    header = parse_header(fetch(0, min(size, MAX_HEADER_BYTES)), size)
    container = header.container
    head = memoryview(bytes(piece[: container.header_bytes]))  # the pieces that follow take its place
    for part in container.parts(container.extent):
        verify_part(part, head, pieces(part.runs))
    return header
