"""Casts give the same bits whatever floating-point environment the calling thread has, and leave it as it was."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from kvlingua.layouts import Geometry, native
from kvlingua.layouts.plan import make_plan
from tests.layouts.kernel_sets import cpu_kernels
from tests.layouts.planes_of_tensors import DTYPES, Tensors, empty, random_numbers, view

TOKENS = 512
X86 = platform.machine() == "x86_64"
UP, DOWN, ZERO = (0x800, 0x400, 0xC00) if X86 else (0x400000, 0x800000, 0xC00000)  # FE_UPWARD and so on of <fenv.h>
SUBNORMAL = 5e-310
SCALES = {"a subnormal scale": 2212000, "a scale": 1050253722}  # fp32 bits: about 3.1e-39, and 0.3

# The numbers and the granularity of the scales of the source, then the target; a scale of the side that has it given.
CASES = {
    "widened": ("bfloat16", None, "float32", None, None),
    "fp16": ("bfloat16", None, "float16", None, None),
    "fp32 to fp16": ("float32", None, "float16", None, None),
    "fp32 to bf16": ("float32", None, "bfloat16", None, None),
    "quantised": ("bfloat16", None, "float8_e4m3fn", "token", None),
    "quantised fp32": ("float32", None, "float8_e5m2", "token", None),
    "to a scale": ("bfloat16", None, "float8_e5m2", "head", "a scale"),
    "to a subnormal scale": ("bfloat16", None, "float8_e4m3fn", "tensor", "a subnormal scale"),
    "fp8 read": ("float8_e4m3fn", "token", "bfloat16", None, None),
    "scales once per block": ("float8_e4m3fn", "head", "float8_e5m2", "head", "a subnormal scale"),
}


def libm() -> ctypes.CDLL:
    return ctypes.CDLL("libm.so.6")


def flushes() -> bool:
    """Whether this thread takes subnormal numbers for 0."""
    return SUBNORMAL * 1.0 == 0.0


@contextmanager
def environment(change: Callable[[], object]) -> Iterator[None]:
    """With this change to the thread's environment; afterwards it is what it was."""
    before = ctypes.create_string_buffer(256)  # no fenv_t is larger
    assert libm().fegetenv(before) == 0
    try:
        change()
        yield
    finally:
        assert libm().fesetenv(before) == 0


def flush() -> None:
    assert torch.set_flush_denormal(True)
    assert flushes()


def rounding(mode: int) -> Callable[[], None]:
    def change() -> None:
        assert libm().fesetround(mode) == 0
        assert libm().fegetround() == mode

    return change


CHANGES = {"flush to zero": flush, "up": rounding(UP), "down": rounding(DOWN), "towards zero": rounding(ZERO)}


def numbers(geometry: Geometry) -> Tensors:
    """Every number of bf16, half of them in k and half in v, or as many of fp32; some of fp8."""
    dtype = geometry.numbers[0].dtype
    if dtype.startswith("float8"):
        return random_numbers(geometry, TOKENS, size=20)
    found = empty(geometry, TOKENS)
    bits = torch.arange(1 << 16, dtype=torch.int32).view(2, -1)
    for half, rows in zip(bits, found.values(), strict=True):
        wide = (half << 16) | (half * 40503 & 0xFFFF if dtype == "float32" else 0)
        rows.copy_((wide if dtype == "float32" else half.to(torch.int16)).view(DTYPES[dtype]).view(rows.shape))
    return found


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", CASES)
def test_casts_do_not_depend_on_the_environment_of_the_thread(case: str, change: str) -> None:
    ours, our_scales, theirs, their_scales, scale = CASES[case]
    source = Geometry.kv(1, 1, 64, ours, scales=our_scales)  # type: ignore[arg-type]
    target = Geometry.kv(1, 1, 64, theirs, scales=their_scales)  # type: ignore[arg-type]
    bits = torch.tensor([SCALES[scale]] if scale else [], dtype=torch.int32).view(torch.float32)
    static = {name: bits.view(1, 1, 1, 1) for name in ("k_scale", "v_scale") if scale and not our_scales}
    content = numbers(source)
    for name in ("k_scale", "v_scale") if scale and our_scales else ():
        content[name].copy_(bits)
    for kernels in cpu_kernels():
        wanted, got = empty(target, TOKENS), empty(target, TOKENS)
        plans = [make_plan(view(source, content), view(target, into, static), True) for into in (wanted, got)]
        native.run(plans[0], kernels=kernels)
        with environment(CHANGES[change]):
            mode, flushing = libm().fegetround(), flushes()
            native.run(plans[1], kernels=kernels)
            assert (libm().fegetround(), flushes()) == (mode, flushing), kernels
        assert (libm().fegetround(), flushes()) == (0, False)
        for name in [plane.name for plane in target.planes if plane.name not in static]:
            one, two = wanted[name].view(torch.uint8), got[name].view(torch.uint8)
            assert torch.equal(one, two), (kernels, name)
            assert not (one == 0x55).all(), (kernels, name)
