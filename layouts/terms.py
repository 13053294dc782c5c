"""The words of a layout's spec: an axis, or one half of an axis that is split into tiles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from kvlingua.layouts.errors import LayoutError

AXES = ("layer", "block", "head", "token", "dim")
"""Axes an element is addressed by, beside its plane."""

_TERM = re.compile(r"([a-z]+)(?:([/%])([1-9][0-9]{0,5})(B?))?")


@dataclass(frozen=True, slots=True)
class Term:
    """One axis of a spec, slowest first. `dim/8` counts tiles of 8 elements, `dim%8` elements in a tile, `dim` all.

    tile: elements in a tile, or bytes if `in_bytes` (`dim/16B`); 0 for a whole axis.
    """

    text: str
    axis: str
    half: Literal["", "/", "%"] = ""
    tile: int = 0
    in_bytes: bool = False

    def size(self, elements: int, itemsize: int) -> int:
        """Steps along this term of an axis with `elements` elements. Raises LayoutError if they aren't whole tiles."""
        if not self.half:
            return elements
        tile = self.elements(itemsize)
        if elements % tile:
            raise LayoutError(f"tiles of {tile} ({self.text}) don't divide {elements} {self.axis}s")
        return elements // tile if self.half == "/" else tile

    def elements(self, itemsize: int) -> int:
        """Elements in a tile."""
        if self.in_bytes and self.tile % itemsize:
            raise LayoutError(f"{self.text} needs elements that fill {self.tile} bytes, not of {itemsize} bytes")
        return self.tile // itemsize if self.in_bytes else self.tile


@lru_cache(maxsize=1024)
def term(text: str) -> Term:
    """The word `text` of a spec. Raises LayoutError if it isn't one."""
    found = _TERM.fullmatch(text)
    if found is None or found[1] not in AXES:
        raise LayoutError(
            f"axis {text!r} isn't known, known are {', '.join(AXES)} and plane, and parts like dim/8 dim%8"
        )
    axis, half, tile, in_bytes = found.groups()
    if half is None:
        return Term(text, axis)
    if axis not in ("token", "dim"):
        raise LayoutError(f"axis {text!r}: only token and dim can be split")
    return Term(text, axis, "/" if half == "/" else "%", int(tile), in_bytes == "B")


def check_path(words: tuple[str, ...]) -> None:
    """Raise LayoutError unless `words`, all that stand on the way to a plane's elements, address each of them once."""
    halves: dict[str, list[Term]] = {}
    for word in words:
        if words.count(word) > 1:
            raise LayoutError(f"axis {word!r} stands twice")
        part = term(word)
        halves.setdefault(part.axis, []).append(part)
    missing = [axis for axis in AXES if axis != "block" and axis not in halves]
    if missing:
        raise LayoutError(f"it lacks {', '.join(missing)}")
    for axis, parts in halves.items():
        kinds = sorted(part.half for part in parts)
        if kinds not in ([""], ["%", "/"]) or len({(part.tile, part.in_bytes) for part in parts}) != 1:
            written = " ".join(part.text for part in parts)
            raise LayoutError(f"axis {axis} stands whole, or once as {axis}/n and once as {axis}%n, not as {written!r}")
