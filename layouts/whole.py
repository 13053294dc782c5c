"""Whole numbers as callers give them: an int, or what numpy and torch count with."""

from __future__ import annotations

import operator
from typing import Any


def whole(value: Any) -> int | None:
    """The int that `value` is; None if it isn't a whole number. True and False aren't: one was written for another."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return None


def keep_whole(fields: object, *names: str) -> bool:
    """Whether these fields of a frozen dataclass are whole numbers; ints take the place of those that are."""
    for name in names:
        number = whole(getattr(fields, name))
        if number is None:
            return False
        object.__setattr__(fields, name, number)
    return True
