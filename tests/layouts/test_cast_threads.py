"""Every operation on numbers and scales, shared out among threads: the same bytes as by one thread, and no others."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from kvlingua.layouts import Buffer, Geometry, format, native
from kvlingua.layouts.casts import Op
from kvlingua.layouts.geometry import Per
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.view import View
from tests.layouts import kernel_sets

TOKENS = 4201
LAYERS, HEADS, DIM = 2, 4, 64
SHARE = 1 << 20  # kThreadBytes of csrc/convert.cpp: a thread is not started for less
RUNS = ((2, 0), (3, 1), (4, 0), (4, 1))  # threads and stream_bytes
STATIC = {"k_scale": (0.25, 0.1, 3.0, 1e-3), "v_scale": (0.5, 0.3, 7.0, 1e-2)}  # per head, the same in all layers


@dataclass(frozen=True)
class Form:
    """What the numbers of one side are; static: its scales lie outside the cache."""

    dtype: str
    scales: Per | None = None
    static: bool = False


BF16, ENGINE = Form("bfloat16"), Form("float8_e4m3fn", "head", static=True)
TOKENWISE = Form("float8_e4m3fn", "token")
WITH_SCALES = {"vllm_lbnhc": "vllm_lbnhc_scaled", "vllm_lbhnc": "vllm_lbhnc_scaled", "vllm_cpu_vec": "canonical"}
CASES = {
    "cast": (BF16, Form("float32"), "vllm_lbhnc", {Op.CAST}, False),
    "cast to scales": (BF16, ENGINE, "vllm_lbnhc", {Op.CAST}, False),
    "cast from scales": (ENGINE, BF16, "canonical", {Op.CAST}, False),
    "cast from scales per token": (TOKENWISE, BF16, "vllm_lbnhc", {Op.CAST}, False),
    "quantise": (BF16, TOKENWISE, "vllm_lbhnc_scaled", {Op.QUANTISE}, False),
    "copy equal": (ENGINE, ENGINE, "vllm_lbhnc", {Op.COPY_EQUAL}, False),
    "fp8 to fp8": (ENGINE, Form("float8_e4m3fnuz", "token"), "canonical", {Op.CAST}, False),
    "fp8 to fp8 per token": (TOKENWISE, Form("float8_e4m3fnuz", "token"), "vllm_lbnhc_scaled", {Op.CAST}, False),
    "once, copied": (ENGINE, Form("float8_e4m3fn", "head"), "canonical", {Op.COPY}, True),
    "once, cast": (ENGINE, Form("float8_e5m2", "head"), "canonical", {Op.CAST}, True),
}


def cache(name: str, form: Form, page: int, start: int, content: bool) -> tuple[View, list[torch.Tensor]]:
    """A sequence in shuffled blocks, and the cache's memory: random numbers, or bytes 0x55 for a target."""
    geometry = Geometry.kv(LAYERS, HEADS, DIM, form.dtype, scales=form.scales)
    layout, count = format(name), (start + TOKENS) // page + 5
    planes = [plane for plane in geometry.planes if not (form.static and plane.is_scale)]
    size = sum(geometry.elements(plane, geometry.full, page) * plane.itemsize for plane in planes) * count
    buffers = 1
    for axis in layout.separate:
        buffers *= {"layer": LAYERS, "plane": len(planes)}[axis]
    memory = [torch.full((size // buffers,), 0x55, dtype=torch.uint8) for _ in range(buffers)]
    generator = torch.Generator().manual_seed(page)
    for one in memory if content else ():
        if form.dtype == "bfloat16":
            one.view(torch.bfloat16).copy_(torch.randn(one.numel() // 2, generator=generator))
        else:
            one.random_(0, 256, generator=generator)
    scales = {plane: [Buffer.of(torch.tensor(rows)) for _ in range(LAYERS)] for plane, rows in STATIC.items()}
    pool = layout.pool(
        geometry,
        geometry.full,
        page=page,
        blocks=count,
        buffers=[Buffer.of(one) for one in memory],
        scales=scales if form.static else None,
    )
    table = random.Random(page).sample(range(count), count)
    return pool.view(table, start, start + TOKENS), memory


@pytest.mark.parametrize("source_name", ["vllm_lbnhc", "vllm_lbhnc", "vllm_cpu_vec"])
@pytest.mark.parametrize("case", CASES)
def test_threads_write_what_one_thread_writes(case: str, source_name: str) -> None:
    source_form, target_form, target_name, ops, once = CASES[case]
    page, start = 48, 7
    for threads in (2, 3, 4):  # a block of each side holds tokens of two threads
        cuts = [TOKENS * i // threads for i in range(1, threads)]
        assert all((start + cut) % page and (5 + cut) % 16 for cut in cuts), threads
    if source_form == TOKENWISE:
        source_name = WITH_SCALES[source_name]
    source, _ = cache(source_name, source_form, 16, 5, True)
    view, wanted = cache(target_name, target_form, page, start, False)
    lossy = case not in ("copy equal", "once, copied")
    plan = make_plan(source, view, lossy)
    assert ops <= {plane.op for plane in plan.planes}
    assert any(plane.once and plane.op in ops for plane in plan.planes) == once
    row = sum(plane.itemsize * plane.width for plane in view.pool.arrangement.geometry.numbers)
    assert row * HEADS * LAYERS * TOKENS >= 4 * SHARE
    native.run(plan, 1, kernels="portable", stream_bytes=1 << 60)
    assert all((one != 0x55).any() for one in wanted)
    for kernels in kernel_sets.kernels_here():
        for threads, stream_bytes in RUNS:
            view, got = cache(target_name, target_form, page, start, False)
            kernel_sets.run(make_plan(source, view, lossy), kernels, stream_bytes, threads)
            same = all(torch.equal(one, two) for one, two in zip(wanted, got, strict=True))
            assert same, (kernels, threads, stream_bytes)
