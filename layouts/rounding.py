"""Numbers of every type to float32 and back, written for reading, with torch: the definition that all kernels follow.

Tensors of bits are unsigned or signed integers of the type's size; values are float32.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from kvlingua.layouts.dtypes import DTYPES

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Integers to hold the bits of an element of so many bytes."""

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# sign, exponent and mantissa bits, exponent bias
_FP8 = {"float8_e4m3fn": (4, 3, 7), "float8_e4m3fnuz": (4, 3, 8), "float8_e5m2": (5, 2, 15)}

# Every NaN becomes this one, whatever its sign and payload: processors disagree on what else it could become.
_NAN = {
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e4m3fnuz": 0x80,
    "float8_e5m2": 0x7F,
}


def fp8_value(code: int, dtype: str) -> float:
    """The value of one fp8 number, from its definition."""
    exponent_bits, mantissa_bits, bias = _FP8[dtype]
    sign = -1.0 if code & 0x80 else 1.0
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    if dtype == "float8_e4m3fn" and code & 0x7F == 0x7F:
        return math.nan
    if dtype == "float8_e4m3fnuz" and code == 0x80:
        return math.nan
    if dtype == "float8_e5m2" and exponent == (1 << exponent_bits) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias)
    return sign * (1 + mantissa) * 2.0 ** (exponent - bias)


def values(bits: torch.Tensor, dtype: str) -> torch.Tensor:
    """The values of numbers given as bits, exactly."""
    if dtype in _FP8:
        return _fp8_values(dtype)[bits.to(torch.int64)]
    return bits.view(_TORCH[dtype]).to(torch.float32)


def rounded(numbers: torch.Tensor, dtype: str) -> torch.Tensor:
    """The bits of the nearest numbers of a type, those with an even code at a tie; `numbers` are float32.

    fp8 has no infinity here: what is too large becomes the largest finite number. Others overflow to infinity.
    """
    bits = _rounded_fp8(numbers, dtype) if dtype in _FP8 else numbers.to(_TORCH[dtype]).view(_bits(dtype))
    return torch.where(numbers.isnan(), torch.tensor(_NAN[dtype], dtype=_bits(dtype)), bits)


@cache
def _fp8_values(dtype: str) -> torch.Tensor:
    return torch.tensor([fp8_value(code, dtype) for code in range(256)], dtype=torch.float32)


def _rounded_fp8(numbers: torch.Tensor, dtype: str) -> torch.Tensor:
    """Codes of positive numbers ascend with their values, so the nearest one is found by the middles between them."""
    middles, largest = _middles(dtype)
    size = numbers.abs().nan_to_num(nan=0.0, posinf=DTYPES[dtype].largest).to(torch.float64)
    below = torch.searchsorted(middles, size, right=False)  # middles less than the number: its code, but at a tie
    at_a_tie = (below < largest) & (middles[below.clamp(max=largest - 1)] == size)
    code = below + (at_a_tie & (below % 2 == 1))
    negative = torch.signbit(numbers)
    if dtype == "float8_e4m3fnuz":
        negative = negative & (code > 0)  # there is no negative zero
    return (code + 0x80 * negative).to(torch.uint8)


@cache
def _middles(dtype: str) -> tuple[torch.Tensor, int]:
    """Half way between each positive code and the next, as float64, and the code of the largest finite number."""
    codes = [code for code in range(0x80) if math.isfinite(fp8_value(code, dtype))]
    exact = torch.tensor([fp8_value(code, dtype) for code in codes], dtype=torch.float64)
    return (exact[1:] + exact[:-1]) / 2, codes[-1]


def _bits(dtype: str) -> torch.dtype:
    return BITS[DTYPES[dtype].itemsize]
