"""Caches that engines themselves built and filled: our rows over their live memory read and write what they mean.

transformers runs here. vLLM and SGLang have environments of their own, where scripts beside this file let the engines'
own writers fill their caches; kernels for GPUs run in Triton's interpreter there. LMCache's rows were checked once,
with multi_layer_kv_transfer and single_layer_kv_transfer of 0.5.6. TensorRT-LLM's and vLLM's for Arm were only read.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.cache_utils import (
    DynamicCache,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from engines.launch import available, environment, python_of
from kvlingua.layouts import FORMATS, Buffer, Geometry, LayoutError, Pool, convert, format
from kvlingua.layouts.formats import OPAQUE
from tests.layouts.written_by import TOKENS, buffer_of, contiguous, numbers, slots, table

LAYERS, HEADS, DIM = 2, 3, 16
KV = Geometry.kv(LAYERS, HEADS, DIM, "float32")


def check(pool: Pool, order: list[int], start: int, planes: Mapping[str, torch.Tensor], count: int) -> None:
    """`pool` holds the last `count` tokens of `planes` from `start` on; then others are written over them there."""
    geometry = pool.geometry
    nothing = {name: torch.zeros_like(tensor) for name, tensor in planes.items()}
    back, got = contiguous(geometry, nothing)
    convert(pool.view(order, start, start + count), back.view([0], TOKENS - count, TOKENS))
    for one, other in zip(got, contiguous(geometry, planes)[1], strict=True):
        assert torch.equal(one[:, -count:], other[:, -count:])
    others, _ = contiguous(geometry, {name: -tensor for name, tensor in planes.items()})
    convert(others.view([0], TOKENS - count, TOKENS), pool.view(order, start, start + count))


def rows(tensors: torch.Tensor) -> torch.Tensor:
    """[layers, TOKENS, heads, width] as transformers has them: [layers, 1, heads, TOKENS, width]."""
    return tensors.transpose(1, 2)[:, None]


@pytest.mark.parametrize("geometry", [KV, Geometry.mla(LAYERS, 32, 8, "bfloat16")], ids=["kv", "latent"])
def test_dynamic(geometry: Geometry) -> None:
    planes = numbers(geometry)
    first, second = (rows(planes[plane.name]) for plane in geometry.planes)
    cache = DynamicCache()
    for start, stop in ((0, 12), (12, 13), (13, TOKENS)):
        for layer in range(LAYERS):
            part = slice(start, stop)
            cache.update(
                first[layer][:, :, part].repeat(2, 1, 1, 1), second[layer][:, :, part].repeat(2, 1, 1, 1), layer
            )
    tensors = [tensor[1] for layer in cache.layers for tensor in (layer.keys, layer.values)]  # of two batch rows
    buffers = [buffer_of(tensor) for tensor in tensors]
    pool = format("hf").pool(geometry, geometry.full, page=TOKENS, blocks=1, buffers=buffers)
    check(pool, [0], 0, planes, TOKENS)
    assert torch.equal(cache.layers[1].keys[1], -first[1][0])
    assert torch.equal(cache.layers[1].keys[0], first[1][0])


def test_sliding_window() -> None:
    planes, window = numbers(KV), 9
    layers = [DynamicSlidingWindowLayer(sliding_window=window) for _ in range(LAYERS)]
    for index, layer in enumerate(layers):
        layer.update(rows(planes["k"])[index], rows(planes["v"])[index])
    tensors = [tensor[0] for layer in layers for tensor in (layer.keys, layer.values)]
    assert not tensors[0].is_contiguous()
    pool = format("hf_sliding").pool(
        KV,
        KV.full,
        page=window - 1,
        blocks=1,
        buffers=[buffer_of(tensor) for tensor in tensors],
        strides={"head": tensors[0].stride(0) * 4},
    )
    check(pool, [0], 0, planes, window - 1)
    assert torch.equal(layers[1].values, -rows(planes["v"])[1][:, :, 1 - window :])


def test_static_sliding_window() -> None:
    """Rolled in place, so that its last token is always the last of the tensor."""
    planes, window = numbers(KV), 9
    layers = [StaticSlidingWindowLayer(max_cache_len=64, sliding_window=window) for _ in range(LAYERS)]
    for index, layer in enumerate(layers):
        for start, stop in ((0, TOKENS - 2), (TOKENS - 2, TOKENS - 1), (TOKENS - 1, TOKENS)):
            part = slice(start, stop)
            layer.update(rows(planes["k"])[index][:, :, part], rows(planes["v"])[index][:, :, part])
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    buffers = [buffer_of(tensor) for tensor in tensors]
    pool = format("hf_sliding").pool(KV, KV.full, page=window, blocks=1, buffers=buffers)
    check(pool, [0], 0, planes, window)
    assert torch.equal(layers[0].keys, -rows(planes["k"])[0][:, :, -window:])


def test_static() -> None:
    """Three batch rows; ours is the last."""
    planes, capacity = numbers(KV), 40
    layers = [StaticLayer(max_cache_len=capacity) for _ in range(LAYERS)]
    for index, layer in enumerate(layers):
        new = [rows(planes[name])[index].repeat(3, 1, 1, 1) for name in ("k", "v")]
        layer.update(new[0][:, :, :15], new[1][:, :, :15])
        layer.update(new[0][:, :, 15:], new[1][:, :, 15:])
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    buffers = [buffer_of(tensor) for tensor in tensors]
    pool = format("hf_static").pool(KV, KV.full, page=capacity, blocks=3, buffers=buffers)
    check(pool, [2], 0, planes, TOKENS)
    assert torch.equal(layers[0].keys[2:, :, :TOKENS], -rows(planes["k"])[0])
    assert torch.equal(layers[0].keys[1:2, :, :TOKENS], rows(planes["k"])[0])
    assert not layers[0].keys[2, :, TOKENS:].any()


def test_continuous_batching() -> None:
    from transformers.generation import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.generation.continuous_batching.distributed import DistributedHelper

    size = {"hidden_size": HEADS * DIM, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    config = LlamaConfig(num_hidden_layers=LAYERS, head_dim=DIM, **size)
    wanted = ContinuousBatchingConfig(page_size=8, num_blocks=12, max_batch_tokens=64, max_memory_percent=0.5)
    cache = PagedAttentionCache(config, wanted, "cpu", DistributedHelper(None, None), torch.float32)
    (allocator,) = cache.cache_allocators.values()
    for request in ("another", "ours"):
        for _ in range(allocator.needs_new_sectors(request, 0, TOKENS)):
            cache.pool.allocate_sector(allocator.index)
        allocator.allocate_cache_to_request(request, 0, TOKENS)
    planes = numbers(KV)
    written = torch.tensor(allocator.get_write_indices("ours", 0, TOKENS))
    for layer in range(LAYERS):
        allocator.update(planes["k"][layer], planes["v"][layer], layer, torch.tensor([], dtype=torch.int64), written)
    page = allocator.tokens_per_page
    blocks = cache.cache_tensor.numel() // KV.block_bytes(KV.full, page)
    pool = format("hf_paged").pool(KV, KV.full, page=page, blocks=blocks, buffers=[Buffer.of(cache.cache_tensor)])
    check(pool, allocator.block_table["ours"], 0, planes, TOKENS)
    read = torch.tensor(allocator.get_read_indices("ours", 0, TOKENS))
    for layer in range(LAYERS):
        k_cache, v_cache = allocator._kv_token_views[layer]
        assert torch.equal(k_cache[read], -planes["k"][layer])
        assert torch.equal(v_cache[read], -planes["v"][layer])


def test_names_that_are_known_but_not_described_say_why() -> None:
    assert not set(OPAQUE) & set(FORMATS)
    for name, reason in OPAQUE.items():
        with pytest.raises(LayoutError, match="can't be described") as error:
            format(name)
        assert reason in str(error.value)
    with pytest.raises(LayoutError, match="isn't known; known are canonical, vllm_lbhnc"):
        format("vllm_something")


def test_slots_are_those_of_the_table() -> None:
    """What the scripts give to engines and to our views is one and the same."""
    order = table(5)
    assert slots(5, 16).tolist() == [order[token // 16] * 16 + token % 16 for token in range(TOKENS)]


HAS_AVX512 = torch.backends.cpu.get_cpu_capability() != "AVX2"
HAS_AMX = torch.cpu._is_amx_tile_supported()
EXPECTED = {"vllm": 31 + 2 * HAS_AVX512 + 3 * HAS_AMX, "sglang": 21}
"""How many caches each script fills: vLLM has writers of fp8 for AVX-512, and others for AMX."""


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", EXPECTED)
def test_what_the_engine_writes_lies_where_our_row_says(engine: str) -> None:
    if not available(engine):
        pytest.skip(f"the environment of {engine} isn't built: run `make engines`")
    variables = environment(engine, {"TRITON_INTERPRET": "1"})
    variables["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[2])
    command = [str(python_of(engine)), str(Path(__file__).with_name(f"{engine}_process.py"))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report == dict.fromkeys(report, True)
    assert len(report) == EXPECTED[engine]
