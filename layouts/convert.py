"""The one entry for copying KV from one layout to another."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

from kvlingua.layouts import native
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View

_log = logging.getLogger("kvlingua")

Backend = Literal["auto", "native", "torch"]


def convert(source: View, target: View, *, threads: int = 1, backend: Backend = "auto") -> None:
    """Copy token `source.start + i` to token `target.start + i`, for all planes of the heads and layers both hold.

    Bit-exact; bytes of the target outside that range stay as they are. `threads` is the most that may be used.
    backend: `native` is the C++ library, `torch` the reference; `auto` takes the library if it is installed.
    The caller holds both memories still meanwhile; the GIL is released.

    Raises LayoutError, before anything is written, if the views are of different models, token counts or of another
    device than the CPU, have no head or layer in common, overlap in memory, or the target names a block twice.
    """
    if threads < 1:
        raise LayoutError(f"a copy needs at least 1 thread, not {threads}")
    if backend not in ("auto", "native", "torch"):
        raise LayoutError(f"backend {backend!r} isn't known; known are auto, native, torch")
    plan = make_plan(source, target)
    if plan.tokens == 0:
        return
    if backend == "native" or (backend == "auto" and native.available()):
        native.run(plan, threads)
        return
    if backend == "auto":
        _warn_slow()
    try:
        from kvlingua.layouts import reference
    except ImportError as error:
        raise LayoutError(
            f"there is neither the native library ({native.describe()}) nor torch ({error}): install one of them"
        ) from None
    reference.copy(source, target, plan.extent)


@cache
def _warn_slow() -> None:
    _log.warning("conversions run through torch, which is slow: %s", native.describe())
