"""The number types a cache may hold: how large, how exact, and which of them hold all values of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number type.

    code: its name in csrc/kvlingua.h. mantissa: bits behind the leading one. smallest: the least positive value,
    a subnormal. largest: the greatest finite value. reach: by what power of two its numbers are larger than those of
    float8_e4m3fn where both were scaled to fill their range.
    """

    itemsize: int
    code: int
    mantissa: int = 0
    smallest: float = 0.0
    largest: float = 0.0
    reach: float = 0.0

    @property
    def is_number(self) -> bool:
        """Whether its elements can be read as numbers; others are bytes that are only moved."""
        return self.mantissa > 0

    @property
    def is_fp8(self) -> bool:
        return self.reach > 0

    def holds(self, other: Dtype, factor: float = 1.0) -> bool:
        """Whether every finite value of `other`, times a power of two, is a value of this type."""
        return (
            self.is_number
            and other.is_number
            and other.mantissa <= self.mantissa
            and other.smallest * factor >= self.smallest
            and other.largest * factor <= self.largest
        )


DTYPES: Mapping[str, Dtype] = MappingProxyType(
    {
        "float32": Dtype(4, 1, 23, 2.0**-149, (2 - 2.0**-23) * 2.0**127),
        "float16": Dtype(2, 2, 10, 2.0**-24, 65504.0),
        "bfloat16": Dtype(2, 3, 7, 2.0**-133, (2 - 2.0**-7) * 2.0**127),
        "float8_e4m3fn": Dtype(1, 4, 3, 2.0**-9, 448.0, reach=1.0),
        "float8_e4m3fnuz": Dtype(1, 5, 3, 2.0**-10, 240.0, reach=0.5),
        "float8_e5m2": Dtype(1, 6, 2, 2.0**-16, 57344.0, reach=128.0),
        "float4_e2m1fn_x2": Dtype(1, 7),  # two numbers a byte
        "uint8": Dtype(1, 7),  # bytes of some form of an engine's own
    }
)
"""Known types by name, in torch's words. An element of the last two is a byte."""

ITEMSIZE: Mapping[str, int] = MappingProxyType({name: dtype.itemsize for name, dtype in DTYPES.items()})
"""Bytes per element of each known dtype."""
