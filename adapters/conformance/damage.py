"""Objects of a file:// store: which are a prompt's, and damage to them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from kvlingua.common.container import parse_header
from kvlingua.common.identity.chain import chain_digests

_SIGN = bytes(byte ^ 0x80 for byte in range(256))


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


def negate_values(path: Path, layers: Collection[int] | None = None) -> None:
    """Every number of V (of latent attention: of the latents, of which V is made), or of V of these layers of the
    object's, gets the other sign, under checksums that are valid: wrong by intent, so that an engine whose tokens stay
    the same doesn't use what it loads."""
    data = bytearray(path.read_bytes())
    parsed = parse_header(bytes(data), len(data))
    container, namespace = parsed.container, parsed.container.namespace
    start = container.header_bytes
    for plane in namespace.geometry.planes:
        nbytes = namespace.geometry.elements(plane, container.extent, namespace.chunk_tokens) * plane.itemsize
        if plane.name in ("v", "latent"):
            count = container.extent.heads * container.extent.layers
            for number in range(count):  # [head, layer, ...]
                if layers is None or number % container.extent.layers in layers:
                    begin, end = (start + nbytes * edge // count for edge in (number, number + 1))
                    high = slice(begin + plane.itemsize - 1, end, plane.itemsize)  # little-endian: with the sign
                    data[high] = data[high].translate(_SIGN)
        start += nbytes
    view = memoryview(data)
    head, body = view[: container.header_bytes], view[container.header_bytes :]
    container.write_header(head, parsed.chain, parsed.first_token // namespace.chunk_tokens, body)
    path.write_bytes(data)
