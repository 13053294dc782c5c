"""The kernels that this CPU has."""

from __future__ import annotations

from functools import cache

from kvlingua.layouts import native

BY_BEST: dict[str, tuple[native.Kernels, ...]] = {
    "portable": ("portable",),
    "avx2": ("portable", "avx2"),
    "avx512": ("portable", "avx2", "avx512"),
    "neon": ("portable", "neon"),
}


@cache
def kernels_here() -> tuple[native.Kernels, ...]:
    """Their names, `best` apart."""
    return BY_BEST[native.describe().rsplit(" ", 1)[-1]]
