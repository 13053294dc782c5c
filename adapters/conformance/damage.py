"""Objects of a file:// store: which are a prompt's, and damage to them."""

from collections.abc import Sequence
from pathlib import Path

from kvlingua.common.container import parse_header
from kvlingua.common.identity.chain import chain_digests

_SIGN = bytes(byte ^ 0x80 for byte in range(256))
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def objects_of(store: Path, tokens: Sequence[int], chunk_tokens: int) -> list[Path]:
    """The files of the prompt's whole chunks that are stored, in the prompt's order, in all namespaces."""
    return [
        path
        for digest in chain_digests(tokens, chunk_tokens)
        for path in sorted(store.glob(f"*/{digest.hex()}-*.safetensors"))
    ]


def flip_bit(path: Path) -> None:
    """One bit of the numbers, near the end."""
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Half of it is gone."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def negate_values(path: Path) -> None:
    """Every number of the second plane (V) gets the other sign, under checksums that are valid: wrong by intent, so
    that an engine whose tokens stay the same doesn't use what it loads."""
    data = bytearray(path.read_bytes())
    parsed = parse_header(bytes(data), len(data))
    container, geometry = parsed.container, parsed.container.namespace.geometry
    first, second = (plane.width for plane in geometry.planes)
    nbytes = _BYTES[geometry.dtype]
    start = container.header_bytes + container.data_bytes * first // (first + second)
    high = slice(start + nbytes - 1, None, nbytes)  # little-endian: the byte with the sign
    data[high] = data[high].translate(_SIGN)
    view = memoryview(data)
    head, body = view[: container.header_bytes], view[container.header_bytes :]
    container.write_header(head, parsed.chain, parsed.first_token // container.namespace.chunk_tokens, body)
    path.write_bytes(data)
