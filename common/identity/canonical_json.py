"""Canonical JSON, as in RFC 8785: one value, one sequence of bytes. And a parser that hostile bytes can't hurt.

Keys sorted by their UTF-16 code units, no white space, UTF-8, strings escaped only where JSON demands it, each number
a double in its shortest form (an integer as an integer: 10000.0 is 10000). No NaN, no Infinity, no integer that isn't
exactly a double, no duplicate keys, depth and size bounded.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

# What JSON can say. The members are Any: a recursive alias would make every reader of a configuration cast.
JSONObject: TypeAlias = Mapping[str, Any]

MAX_DEPTH = 32
MAX_INTEGER = 1 << 53  # up to here every integer is a double
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def encode(value: object, *, max_bytes: int) -> bytes:
    """The canonical bytes of `value` (None, bool, int, float, str, list or tuple, mapping with string keys).

    Raises ValueError for anything else, for numbers and strings that JSON can't hold, and beyond the bounds.
    """
    parts: list[str] = []
    _write(value, parts, 0)
    try:
        data = "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a string is not valid Unicode: {error}") from None
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, more than the {max_bytes} allowed")
    return data


def decode(data: bytes | memoryview, *, max_bytes: int) -> Any:
    """Parse JSON (canonical or not), size and depth checked before anything is built. Raises ValueError."""
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes of JSON, more than the {max_bytes} allowed")
    data = bytes(data)
    depth = 0
    for token in _STRUCTURE.finditer(data):
        mark = data[token.start()]
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
        elif mark in b"]}":
            depth -= 1
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None


def number(value: int | float) -> str:
    """A number as ECMAScript prints it. Raises ValueError if it is not finite or not exactly a double."""
    double = _exact_double(value)
    if double == 0:
        return "0"
    sign, mantissa = ("-", repr(-double)) if double < 0 else ("", repr(double))
    mantissa, _, exponent = mantissa.partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))  # digits before the decimal point
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def _exact_double(value: int | float) -> float:
    try:
        double = float(value)
    except OverflowError:
        raise ValueError("an integer beyond what a double can hold") from None
    if not math.isfinite(double):
        raise ValueError(f"{double} is not a number of JSON")
    if double != value:
        raise ValueError(f"the integer {value} is not exactly a double")
    return double


def _write(value: object, parts: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        parts.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, (int, float)):
        parts.append(number(value))
    elif isinstance(value, str):
        parts.append(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, (list, tuple)):
        _write_all("[", "]", [("", item) for item in value], parts, depth)
    elif isinstance(value, Mapping):
        _write_all("{", "}", _sorted_members(value), parts, depth)
    else:
        raise ValueError(f"{type(value).__name__} has no form in JSON")


def _write_all(before: str, after: str, items: list[tuple[str, Any]], parts: list[str], depth: int) -> None:
    parts.append(before)
    for place, (name, item) in enumerate(items):
        parts.append(("," if place else "") + name)
        _write(item, parts, depth + 1)
    parts.append(after)


def _sorted_members(value: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"keys are strings, not {type(key).__name__}")
    ordered = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
    return [(json.dumps(key, ensure_ascii=False) + ":", value[key]) for key in ordered]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _integer(text: str) -> int | float:
    if len(text) > 400:  # the largest double has 309 digits
        raise ValueError("an integer beyond what a double can hold")
    value, double = int(text), float(text)
    if abs(value) > MAX_INTEGER and number(double) == text:
        return double  # the shortest form of a large double looks like an integer
    _exact_double(value)
    return value


def _float(text: str) -> float:
    return _exact_double(float(text))


def _constant(text: str) -> object:
    raise ValueError(f"{text} is not a number of JSON")
