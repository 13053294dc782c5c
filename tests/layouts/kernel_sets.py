"""All kernels that can be run here: those that this CPU has, and those for GPUs, on one or executed by their twin."""

from __future__ import annotations

from functools import cache

import torch

from kvlingua.layouts import gpu, native
from kvlingua.layouts.plan import Plan
from tests.gpu import relocated
from tests.native import builds

BY_BEST: dict[str, tuple[native.Kernels, ...]] = {
    "portable": ("portable",),
    "avx2": ("portable", "avx2"),
    "avx512": ("portable", "avx2", "avx512"),
    "neon": ("portable", "neon"),
}
TWIN = "host_twin"
DEVICE = "device"


def cpu_kernels() -> tuple[native.Kernels, ...]:
    """Those that this CPU has."""
    return BY_BEST[native.describe().rsplit(" ", 1)[-1]]


@cache
def kernels_here() -> tuple[str, ...]:
    """Their names. There is no twin where there is no compiler. On a GPU, only what it does is tested."""
    if has_device():
        return (DEVICE,)
    return cpu_kernels() + ((TWIN,) if builds.twin() else ())


def has_device() -> bool:
    """Whether torch has a GPU here, and we the kernels for it."""
    return torch.cuda.is_available() and gpu.available()


def run(plan: Plan, kernels: str, stream_bytes: int = 0, threads: int = 1) -> None:
    """Run a plan by certain kernels. For the twin stream_bytes decides how much a grid block does."""
    twin = builds.twin() if kernels == TWIN else None
    if kernels == DEVICE:
        library = gpu.here().library
        assert library is not None
        relocated.run(plan, library, block_bytes=1 if stream_bytes == 1 else 0)
    elif twin:
        gpu.run_twin(plan, twin, block_bytes=1 if stream_bytes == 1 else 0, blocks=4)
    else:
        native.run(plan, threads=threads, kernels=kernels, stream_bytes=stream_bytes)  # type: ignore[arg-type]
