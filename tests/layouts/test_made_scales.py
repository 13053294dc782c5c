"""Scales made per token and head, by every kernel: with them no number needs a cap, unless one is infinite or NaN."""

from __future__ import annotations

import math

import pytest
import torch

from kvlingua.layouts import Geometry, convert
from kvlingua.layouts.plan import make_plan
from tests.layouts import kernel_sets
from tests.layouts.planes_of_tensors import DTYPES, Tensors, empty, random_numbers, view

HEADS, DIM = 3, 72  # a whole group of every kernel's, and some that are left
LARGEST = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0, "float8_e5m2": 57344.0}
WIDE = ("float32", "bfloat16", "float16")
SPECIAL = (math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 2.0**-126, -(2.0**-149), 2.0**-118, 3.3e38)


def made(ours: str, theirs: str, source: Tensors, *, kernels: str | None) -> list[torch.Tensor]:
    """Numbers and scales as bytes; by the reference if `kernels` is None."""
    given = Geometry.kv(1, HEADS, DIM, ours)
    taken = Geometry.kv(1, HEADS, DIM, theirs, scales="token")
    target = empty(taken, source["k"].shape[2])
    if kernels is None:
        convert(view(given, source), view(taken, target), backend="torch", allow_lossy=True)
    else:
        kernel_sets.run(make_plan(view(given, source), view(taken, target), allow_lossy=True), kernels)
    return [plane.view(torch.uint8) for plane in target.values()]


def numbers(ours: str, tokens: int) -> Tensors:
    """Rows of every magnitude the type has."""
    source = random_numbers(Geometry.kv(1, HEADS, DIM, ours), tokens)
    generator = torch.Generator().manual_seed(1)
    low, high = (-20.0, 13.0) if ours == "float16" else (-140.0, 124.0)
    for name in ("k", "v"):
        exponent = torch.empty(1, HEADS, tokens, 1).uniform_(low, high, generator=generator)
        source[name] = (source[name].to(torch.float32) * exponent.exp2()).to(DTYPES[ours])
    return source


@pytest.mark.parametrize("theirs", LARGEST)
@pytest.mark.parametrize("ours", WIDE)
def test_products_that_round_above_the_largest_number(ours: str, theirs: str) -> None:
    source = numbers(ours, 3000)
    k = source["k"].to(torch.float32).abs().amax(dim=3)
    scale = k / torch.full_like(k, LARGEST[theirs])
    assert bool((k * (torch.ones_like(scale) / scale) > LARGEST[theirs]).any())
    want = made(ours, theirs, source, kernels=None)
    for kernels in kernel_sets.kernels_here():
        got = made(ours, theirs, source, kernels=kernels)
        assert all(map(torch.equal, got, want)), kernels


@pytest.mark.parametrize("theirs", LARGEST)
@pytest.mark.parametrize("ours", WIDE)
def test_a_special_number_among_others(ours: str, theirs: str) -> None:
    """At every place of a row, in rows far apart: most blocks of rows have none."""
    source = numbers(ours, 3000)
    for i, special in enumerate(SPECIAL * 12):
        source["k"][0, i % HEADS, 23 * i, i % DIM] = special
        if i % 3 == 0:  # alone
            source["v"][0, i % HEADS, 23 * i] = 0
        source["v"][0, i % HEADS, 23 * i, 11 * i % DIM] = special
    want = made(ours, theirs, source, kernels=None)
    for kernels in kernel_sets.kernels_here():
        got = made(ours, theirs, source, kernels=kernels)
        assert all(map(torch.equal, got, want)), kernels
