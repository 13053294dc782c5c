"""The one entry for copying KV from one layout to another."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

from kvlingua.layouts import native
from kvlingua.layouts.checks import check
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View
from kvlingua.layouts.whole import whole

_log = logging.getLogger("kvlingua")

Backend = Literal["auto", "native", "torch"]


def convert(
    source: View, target: View, *, threads: int = 1, backend: Backend = "auto", allow_lossy: bool = False
) -> None:
    """Bring token `source.start + i` to token `target.start + i`, for all planes of the heads and layers both hold.

    Bits are copied where both sides keep them alike; dims are permuted, numbers cast and scales converted where they
    don't (docs/format/layout.md says how exactly). Bytes of the target outside that range stay as they are.
    `threads` is the most that may be used. allow_lossy: conversions that lose precision are wanted; else refused.
    backend: `native` is the C++ library, `torch` the reference; `auto` takes the library if it is installed.
    The caller holds both memories still meanwhile; the GIL is released.

    Raises LayoutError, before anything is written, if the views are of different models, token counts or of another
    device than the CPU, have no head or layer in common, overlap in memory, a block table names a block that isn't
    there, or the target's one twice, precision would be lost without leave, or scales meet that differ.
    """
    most = whole(threads)
    if most is None or most < 1:
        raise LayoutError(f"a copy needs a whole number of threads, at least 1, not {threads!r}")
    if backend not in ("auto", "native", "torch"):
        raise LayoutError(f"backend {backend!r} isn't known; known are auto, native, torch")
    plan = make_plan(source, target, allow_lossy)
    if plan.tokens == 0:
        return
    if backend == "native" or (backend == "auto" and native.available()):
        native.run(plan, most)
        return
    if backend == "auto":
        _warn_slow()
    try:
        from kvlingua.layouts import reference
    except ImportError as error:
        raise LayoutError(
            f"there is neither the native library ({native.describe()}) nor torch ({error}): install one of them"
        ) from None
    check(plan)
    reference.copy(source, target, plan.extent, allow_lossy)


@cache
def _warn_slow() -> None:
    _log.warning("conversions run through torch, which is slow: %s", native.describe())
