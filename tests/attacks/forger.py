"""Writes objects as an attacker would: whatever their headers say, their own checksum is right."""

import json
import struct
from collections.abc import Callable
from typing import Any

import xxhash


def with_header(text: bytes, data: bytes) -> bytes:
    """An object with this header, padded and with the right length in front."""
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + data


def signed(values: dict[str, Any], data: bytes) -> bytes:
    """An object with these header values and a header checksum that is right."""

    def form() -> bytes:
        return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    metadata = values["__metadata__"]
    metadata["header_checksum"] = "0" * 32
    metadata["header_checksum"] = xxhash.xxh3_128_hexdigest(with_header(form(), b""))
    return with_header(form(), data)


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Puts `to` where the path leads, in a header's values."""

    def apply(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return apply
