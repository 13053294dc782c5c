"""The C++ library: found, checked, called."""

from __future__ import annotations

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import Plan

_ABSENT = "the native library isn't installed (pip install kvlingua again where there is a C++ compiler)"


def available() -> bool:
    """Whether the native library can be used."""
    return False


def describe() -> str:
    """The library's kernels, or why there are none, in one line."""
    return _ABSENT


def run(plan: Plan, threads: int) -> None:
    """Run a plan in one call of the library. Raises LayoutError if there is none, or it refuses."""
    raise LayoutError(_ABSENT)
