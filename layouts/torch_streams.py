"""Streams as torch knows them, which is asked only where the process has it already."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import Plan


def current(index: int) -> int:
    """torch's current stream of a device, or the default one where torch isn't loaded."""
    torch: Any = sys.modules.get("torch")
    return int(torch.cuda.current_stream(index).cuda_stream) if torch is not None else 0


def stream_of(index: int, queue: int) -> Any:
    """torch's object for a stream. To ExternalStream 0 is no stream but the wish for a new one."""
    torch: Any = sys.modules["torch"]
    if queue == 0:
        return torch.cuda.default_stream(index)
    return torch.cuda.ExternalStream(queue, device=index)


def run_through_torch(plan: Plan, index: int, stream: int | None, copy: Callable[[], None]) -> None:
    """Run what torch does in place of our kernels, on `stream` as they would.

    torch reads and writes pinned memory at once, by the CPU, so the stream is waited for where a side is pinned.
    """
    torch: Any = sys.modules["torch"]
    on_stream = stream_of(index, current(index) if stream is None else stream)
    if "pinned" in (plan.source.pool.device, plan.target.pool.device):
        on_stream.synchronize()
    with torch.cuda.stream(on_stream):
        copy()


def buffer(index: int, queue: int, nbytes: int) -> Buffer:
    """Memory of torch's on the device, which it gives to nobody else before the stream is done with it."""
    torch: Any = sys.modules["torch"]
    with torch.cuda.stream(stream_of(index, queue)):
        return Buffer.of(torch.empty(nbytes, dtype=torch.uint8, device=f"cuda:{index}"))
