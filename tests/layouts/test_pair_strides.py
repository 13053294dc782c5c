"""Pairs of layouts with strides of any size: the native library against the reference."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.layouts import FORMATS, Buffer, Geometry, convert
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.terms import term
from tests.layouts import kernel_sets
from tests.layouts.engine_pools import random_bits
from tests.layouts.test_pairs import KINDS


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_strides(data: st.DataObject) -> None:
    """Gaps along any axis, dim included, so that nothing need be contiguous anywhere: library against reference."""
    dim = data.draw(st.sampled_from((16, 32)) | st.integers(1, 40))
    geometry = Geometry.kv(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), dim, "bfloat16")
    tokens = data.draw(st.integers(1, 40))
    views = []
    for seed in range(2):
        split = dim % 16 == 0
        names = [name for name in KINDS["kv"] if split or not any(c in FORMATS[name].spec for c in "/%")]
        layout = FORMATS[data.draw(st.sampled_from(names))]
        pages = st.sampled_from((16, 32)) if "token/" in layout.spec else st.integers(1, 20)
        page = data.draw(pages) if "block" in layout.axes("k") else tokens
        sizes = {"layer": geometry.layers, "block": -(-tokens // page), "head": geometry.kv_heads}
        sizes |= {"token": page, "dim": dim}
        gaps = st.sampled_from((0, 0, 0, 2, 10))
        strides: dict[str, int] = {}

        def nest(words: tuple[str, ...], inside: int, prefix: str) -> int:
            for word in reversed(words):
                strides[prefix + word] = inside + data.draw(gaps)  # noqa: B023 - called in this round only
                part = term(word)
                inside = strides[prefix + word] * part.size(sizes[part.axis], 2)  # noqa: B023
            return inside

        if "plane" in layout.separate:
            for plane in ("k", "v"):
                nest(layout.axes(plane), 2, f"{plane}.")
        else:
            regions = [nest(layout.axes(plane)[len(layout.shared) :], 2, f"{plane}.") for plane in ("k", "v")]
            nest(layout.shared, sum(regions), "")
        count = (geometry.layers if "layer" in layout.separate else 1) * (2 if "plane" in layout.separate else 1)
        memory = [random_bits(2**20 // count, itemsize=2, seed=100 * seed + i) for i in range(count)]
        pool = layout.pool(
            geometry,
            geometry.full,
            page=page,
            blocks=sizes["block"],
            buffers=[Buffer.of(part) for part in memory],
            strides=strides,
        )
        order = list(range(sizes["block"]))
        random.Random(seed).shuffle(order)
        views.append((pool.view(order, 0, tokens), memory))
    (source, _), (target, memory) = views
    before = [part.clone() for part in memory]
    convert(source, target, backend="torch")
    wanted = [part.clone() for part in memory]
    for kernels in kernel_sets.kernels_here():
        for part, old in zip(memory, before, strict=True):
            part.copy_(old)
        kernel_sets.run(make_plan(source, target), kernels, data.draw(st.sampled_from((0, 1))))
        for got, right in zip(memory, wanted, strict=True):
            assert torch.equal(got, right), kernels
