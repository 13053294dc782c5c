"""One value, one sequence of bytes; and a parser that hostile bytes can't hurt."""

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.identity.canonical_json import MAX_DEPTH, decode, encode, number

DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | DOUBLES | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
SMALL = st.none() | st.booleans() | st.floats(-(2.0**53), 2.0**53) | st.text()
LIMIT = 1 << 20


def same(one: Any, other: Any) -> bool:
    """Equal with 1 and 1.0 the same, 1 and True not."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@given(VALUES)
def test_what_is_written_reads_back_and_is_written_the_same_again(value: Any) -> None:
    data = encode(value, max_bytes=LIMIT)
    assert same(value, decode(data, max_bytes=LIMIT))
    assert encode(decode(data, max_bytes=LIMIT), max_bytes=LIMIT) == data


@given(st.recursive(SMALL, lambda inner: st.lists(inner, max_size=3), max_leaves=9))
def test_other_parsers_read_the_same(value: Any) -> None:
    assert same(value, json.loads(encode(value, max_bytes=LIMIT)))


@given(st.dictionaries(st.text(), DOUBLES))
def test_the_order_of_keys_does_not_matter(value: dict[str, float]) -> None:
    assert encode(value, max_bytes=LIMIT) == encode(dict(reversed(value.items())), max_bytes=LIMIT)


@given(DOUBLES)
def test_numbers_keep_every_bit(value: float) -> None:
    assert float(number(value)) == value


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # from the table of RFC 8785, appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
    ],
)
def test_numbers_are_written_as_in_rfc_8785(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert number(value) == text


def test_keys_are_sorted_by_utf_16() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = list(json.loads(encode(dict.fromkeys(keys, 0), max_bytes=LIMIT)))
    assert ordered == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, (1 << 53) + 1, 10**400, {1: 2}, object(), b"x", "\ud800"]
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode({"a": value}, max_bytes=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e999",
        b"9007199254740993",
        b"1" * 5000,
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * 100_000,
        b"[" * 900_000,
        b'"' + b'\\"' * 400_000,
        b'"\\' * 300_000,
        b"{} {}",
        b"[01]",
    ],
    ids=lambda data: repr(data[:12]) + f"x{len(data)}",
)
@pytest.mark.timeout(20)
def test_hostile_bytes_are_refused_at_once(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(data, max_bytes=LIMIT)


def test_size_and_depth_are_bounded() -> None:
    assert decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, max_bytes=LIMIT) is not None
    assert decode(b'"' + b"[" * 1000 + b'"', max_bytes=LIMIT) == "[" * 1000
    with pytest.raises(ValueError, match="more than the 3 allowed"):
        decode(b"[12]", max_bytes=3)
    with pytest.raises(ValueError, match="more than the 3 allowed"):
        encode([12], max_bytes=3)
    deep: Any = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper"):
        encode(deep, max_bytes=LIMIT)
