"""The one entry for copying KV from one layout to another."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Literal

from kvlingua.layouts import gpu, native
from kvlingua.layouts.checks import check
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.torch_streams import run_through_torch
from kvlingua.layouts.view import View
from kvlingua.layouts.whole import whole

_log = logging.getLogger("kvlingua")

Backend = Literal["auto", "native", "torch"]


def convert(
    source: View,
    target: View,
    *,
    threads: int = 1,
    backend: Backend = "auto",
    allow_lossy: bool = False,
    stream: int | None = None,
) -> None:
    """Bring token `source.start + i` to token `target.start + i`, for all planes of the heads and layers both hold.

    Bits are copied where both sides keep them alike; dims are permuted, numbers cast and scales converted where they
    don't (docs/format/layout.md says how exactly). Bytes of the target outside that range stay as they are.
    `threads` is the most that may be used. allow_lossy: conversions that lose precision are wanted; else refused.
    backend: `native` is our library for where the memory is: C++ for CPUs, CUDA or HIP for GPUs; `torch` the reference;
    `auto` takes the library if there is one.
    On a GPU the work is launched on `stream` (None: torch's current one) and has happened once that has come so far.
    Until then the caller holds both memories still; tables and views may change at once. On a CPU it has happened on
    return; the GIL is released. In a graph it may be captured, once something was converted on that GPU; but not where
    static scales are compared, which waits for `stream`, nor by torch.

    Raises LayoutError, before anything is written, if the views are of different models or token counts, lie where no
    one device reaches both, have no head or layer in common, overlap in memory, a block table names a block that isn't
    there, or the target's one twice, precision would be lost without leave, scales meet that differ, or scales would
    have to be compared while the stream is being captured.
    """
    most = whole(threads)
    if most is None or most < 1:
        raise LayoutError(f"a copy needs a whole number of threads, at least 1, not {threads!r}")
    if backend not in ("auto", "native", "torch"):
        raise LayoutError(f"backend {backend!r} isn't known; known are auto, native, torch")
    plan = make_plan(source, target, allow_lossy)
    if plan.tokens == 0:
        return
    on_cpu = plan.device == "cpu"
    index = 0 if on_cpu else gpu.device_index(plan)
    if backend == "native" or (backend == "auto" and (native.available() if on_cpu else gpu.available(index))):
        if on_cpu:
            native.run(plan, most)
        else:
            gpu.run(plan, stream)
        return
    if backend == "auto":
        _warn_slow(native.describe() if on_cpu else gpu.on(index).description)
    try:
        from kvlingua.layouts import reference
    except ImportError as error:
        raise LayoutError(
            f"there is neither the native library ({native.describe()}) nor torch ({error}): install one of them"
        ) from None
    check(plan)
    if on_cpu:
        reference.copy(source, target, plan.extent, allow_lossy)
    else:
        copy = partial(reference.copy, source, target, plan.extent, allow_lossy)
        run_through_torch(plan, index, stream, copy)


@cache
def _warn_slow(why: str) -> None:
    _log.warning("conversions run through torch, which is slow: %s", why)
