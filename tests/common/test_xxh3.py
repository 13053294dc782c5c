"""The library's XXH3-128 against the xxhash package's, for every way in which its loops can end."""

import ctypes
import random
from collections.abc import Sequence

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.objects_abi import library
from kvlingua.layouts.native import KERNELS

LONGEST = 2100  # two blocks of 1,024 and some stripes of 64
NOISE = random.Random(7).randbytes(300_000)


def runnable() -> list[str]:
    """The kernels that this CPU can run; there is always `portable`."""
    return [name for name in KERNELS if checksum(name, b"") is not None]


def checksum(kernels: str, data: bytes, cuts: Sequence[int] = ()) -> str | None:
    """Of `data`, handed over in runs that end at `cuts`; None if this CPU lacks the kernels."""
    ends = [*sorted(cuts), len(data)]
    runs = [edge for pair in zip([0, *ends], ends, strict=False) for edge in pair]
    digits = ctypes.create_string_buffer(32)
    code = library().kvl_checksum(KERNELS[kernels], data, (ctypes.c_uint64 * len(runs))(*runs), len(ends), digits)
    assert code in (0, 6)
    return digits.raw.decode() if code == 0 else None


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_length(kernels: str) -> None:
    if kernels not in runnable():
        pytest.skip(f"this CPU lacks {kernels}")
    for length in range(LONGEST + 1):
        data = NOISE[length : 2 * length]
        assert checksum(kernels, data) == xxhash.xxh3_128_hexdigest(data), length


@given(data=st.data())
def test_long_inputs_in_any_runs(data: st.DataObject) -> None:
    begin, length = data.draw(st.integers(0, 64)), data.draw(st.integers(0, 200_000))
    cuts = data.draw(st.lists(st.integers(0, length), max_size=8))
    part = NOISE[begin : begin + length]
    expected = xxhash.xxh3_128_hexdigest(part)
    for kernels in runnable():
        assert checksum(kernels, part, cuts) == expected


@given(data=st.data())
def test_short_inputs_in_any_runs(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, LONGEST))
    cuts = data.draw(st.lists(st.integers(0, length), max_size=8))
    part = NOISE[:length]
    expected = xxhash.xxh3_128_hexdigest(part)
    for kernels in runnable():
        assert checksum(kernels, part, cuts) == expected


def test_one_flipped_bit_is_another_checksum() -> None:
    for length in (1, 8, 16, 100, 200, 1024, 5000):
        data = bytearray(NOISE[:length])
        before = checksum("best", bytes(data))
        data[length // 2] ^= 1
        assert checksum("best", bytes(data)) != before
