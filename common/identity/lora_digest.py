"""What a LoRA adapter does to a model's KV, in one digest: of its matrices, where they act, and how strongly."""

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The types that the matrices of an adapter may have, by their names in safetensors."""
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """One of the two matrices that an adapter has for a module.

    name: `MODULE.lora_A` (`[rank, in]`) or `MODULE.lora_B` (`[out, rank]`), the module as the model calls it.
    dtype: one of `ELEMENT_BYTES`. data: little-endian, row by row.
    """

    name: str
    dtype: str
    shape: tuple[int, int]
    data: bytes | memoryview


def digest_of(scaling: float, matrices: Iterable[Matrix]) -> str:
    """64 hexadecimal digits for a plain LoRA: sha256 over what B x A is multiplied with, and the matrices.

    In the order of their names: each name's UTF-8 and a zero byte, rows and columns as u64 little-endian, the numbers
    as float32, to which the narrower types widen exactly: what was saved in bfloat16 is the same adapter when an engine
    holds it in float32. First of all stands the scaling as a double. Neither the adapter's name nor its folder counts.
    """
    digest = hashlib.sha256(b"kvlingua-lora-v1" + struct.pack("<d", scaling))
    for matrix in sorted(matrices, key=lambda each: each.name.encode()):
        digest.update(matrix.name.encode() + b"\0" + struct.pack("<QQ", *matrix.shape))
        for piece in _widened(matrix):
            digest.update(piece)
    return digest.hexdigest()


def _widened(matrix: Matrix) -> Iterator[bytes | bytearray | memoryview]:
    """The bytes of its numbers as float32, in pieces."""
    data = memoryview(matrix.data).cast("B")
    if matrix.dtype == "F32":
        yield data
        return
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        if matrix.dtype == "BF16":  # the upper half of a float32
            wide = bytearray(2 * len(piece))
            wide[2::4], wide[3::4] = piece[0::2], piece[1::2]
            yield wide
        else:
            numbers = array("f", struct.unpack(f"<{len(piece) // 2}e", piece))
            if sys.byteorder == "big":
                numbers.byteswap()
            yield memoryview(numbers).cast("B")
