"""Runs where SGLang is: its own pools, built without a model, are filled by their own writers; our rows must agree."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.quantization.kvfp4_tensor import FP4MXBlock16KVQuantizeUtil
from sglang.srt.mem_cache import memory_pool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

from kvlingua.layouts import Geometry, Plane
from tests.layouts.written_by import TOKENS, TORCH, agrees, numbers, slots

LAYERS, HEADS, DIM, PAGE, BLOCKS = 2, 3, 32, 16, 5
LATENT, ROPE = 64, 16


def pool_of(kind: Any = memory_pool.MHATokenToKVPool, **more: Any) -> Any:
    size = {"size": (BLOCKS - 1) * PAGE, "page_size": PAGE, "layer_num": LAYERS, "device": "cpu"}
    return kind(**(size | {"enable_memory_saver": False} | more))


def rows(row: str, dtype: str, v_dim: int) -> bool:
    """MHATokenToKVPool as the environment says: NHD, HND, or AITER's tiles."""
    kv = pool_of(dtype=TORCH[dtype], head_num=HEADS, head_dim=DIM, v_head_dim=v_dim)
    geometry = Geometry.kv(LAYERS, HEADS, DIM, dtype, v_dim)
    planes = numbers(geometry)

    def write() -> None:
        for layer in range(LAYERS):
            new = planes["k"][layer].clone(), planes["v"][layer].clone()
            kv.set_kv_buffer(SimpleNamespace(layer_id=layer), slots(BLOCKS, PAGE), *new)

    buffers = [buffer for pair in zip(kv.k_buffer, kv.v_buffer, strict=True) for buffer in pair]
    return agrees(row, geometry, planes, buffers, write, page=PAGE, blocks=BLOCKS)


def latent_pool() -> Any:
    pool = pool_of(memory_pool.MLATokenToKVPool, dtype=torch.bfloat16, kv_lora_rank=LATENT, qk_rope_head_dim=ROPE)
    pool.dcp_replicated = True  # decode context parallelism isn't published here
    return pool


def latent() -> bool:
    kv = latent_pool()
    geometry = Geometry.mla(LAYERS, LATENT, ROPE, "bfloat16")
    planes = numbers(geometry)

    def write() -> None:
        for layer in range(LAYERS):
            new = torch.cat([planes["latent"][layer], planes["rope"][layer]], dim=-1)
            kv.set_kv_buffer(SimpleNamespace(layer_id=layer), slots(BLOCKS, PAGE), new, new)

    return agrees("sglang_mla", geometry, planes, kv.kv_buffer, write, page=PAGE, blocks=BLOCKS)


def fp4() -> bool:
    """SGLang quantises; what we move are the bytes that it makes."""
    kv = pool_of(memory_pool.MHATokenToKVPoolFP4, dtype=torch.float4_e2m1fn_x2, head_num=HEADS, head_dim=DIM)
    packed = [Plane(name, DIM // 2, "float4_e2m1fn_x2") for name in ("k", "v")]
    scales = [Plane(f"{name}_scale", DIM // 16, "uint8") for name in ("k", "v")]
    geometry = Geometry(LAYERS, HEADS, (*packed, *scales))
    new = numbers(Geometry.kv(LAYERS, HEADS, DIM, "bfloat16"))
    planes = {}
    for name, values in new.items():
        made = [FP4MXBlock16KVQuantizeUtil.batched_quantize(layer) for layer in values]
        planes[name] = torch.stack([numbers for numbers, _ in made])
        planes[f"{name}_scale"] = torch.stack([scales for _, scales in made]).unflatten(-1, (HEADS, DIM // 16))

    def write() -> None:
        for layer in range(LAYERS):
            cache = new["k"][layer].clone(), new["v"][layer].clone()
            kv.set_kv_buffer(SimpleNamespace(layer_id=layer), slots(BLOCKS, PAGE), *cache)

    each = zip(kv.k_buffer, kv.v_buffer, kv.k_scale_buffer, kv.v_scale_buffer, strict=True)
    buffers = [buffer for layer in each for buffer in layer]
    return agrees("sglang_fp4", geometry, planes, buffers, write, page=PAGE, blocks=BLOCKS)


def host(layout: str, groups: int = 1) -> bool:
    """HiCache's host pools: their constructors allocate; what stands where is said by the names of their dims."""
    device = pool_of(dtype=torch.bfloat16, head_num=HEADS, head_dim=DIM)
    pool = host_pool(MHATokenToKVPoolHost, device, layout, head_group_num=groups)
    geometry = Geometry.kv(LAYERS, HEADS, DIM, "bfloat16")
    planes = numbers(geometry)
    at = slots(BLOCKS, PAGE)
    page, offset = at // PAGE, at % PAGE

    def write() -> None:
        for index, name in enumerate(("k", "v")):
            for layer in range(LAYERS):
                for head in range(HEADS):
                    new, buffer = planes[name][layer, :, head], pool.kv_buffer
                    if layout == "layer_first":
                        buffer[index, layer, at, head] = new
                    elif layout == "page_first":
                        buffer[index, at, layer, head] = new
                    elif layout == "page_first_direct":
                        buffer[index, page, layer, offset, head] = new
                    elif layout == "page_head":
                        buffer[index, page, head, offset, layer] = new
                    else:
                        in_group = HEADS // groups
                        buffer[page, head // in_group, layer, index, offset, head % in_group] = new

    row = f"hicache_{layout}" + ("_heads" if groups > 1 else "")
    return agrees(row, geometry, planes, [pool.kv_buffer], write, page=PAGE, blocks=pool.page_num)


def latent_host(layout: str) -> bool:
    pool = host_pool(MLATokenToKVPoolHost, latent_pool(), layout, target_layer_num=LAYERS)
    geometry = Geometry.mla(LAYERS, LATENT, ROPE, "bfloat16")
    planes = numbers(geometry)
    at = slots(BLOCKS, PAGE)

    def write() -> None:
        for layer in range(LAYERS):
            new = torch.cat([planes["latent"][layer], planes["rope"][layer]], dim=-1)
            if layout == "layer_first":
                pool.kv_buffer[layer, at] = new
            elif layout == "page_first":
                pool.kv_buffer[at, layer] = new
            else:  # page_unified has no axis of one head
                buffer = pool.kv_buffer.view(pool.page_num, LAYERS, PAGE, 1, LATENT + ROPE)
                buffer[at // PAGE, layer, at % PAGE] = new

    row = f"hicache_mla_{layout.replace('page_unified', 'page_first_direct')}"
    return agrees(row, geometry, planes, [pool.kv_buffer], write, page=PAGE, blocks=pool.page_num)


def host_pool(kind: Any, device: Any, layout: str, **more: Any) -> Any:
    """A host pool of BLOCKS pages."""
    return kind(
        device.get_device_pool_infos()[0].buffer_info,
        host_to_device_ratio=1.0,
        host_size=0,
        page_size=PAGE,
        layout=layout,
        pin_memory=False,
        device="cpu",
        device_capacity_tokens=BLOCKS * PAGE,
        start_layer=0,
        end_layer=LAYERS,
        host_token_capacity=BLOCKS * PAGE,
        **more,
    )


def main() -> None:
    assert TOKENS > PAGE
    report = {}
    for dtype in ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        report[f"nhd {dtype}"] = rows("sglang_nhd", dtype, DIM)
    report["nhd unequal"] = rows("sglang_nhd", "bfloat16", 2 * DIM)
    os.environ["SGLANG_USE_HND_KVCACHE"] = "1"
    report["hnd"] = rows("sglang_hnd", "bfloat16", DIM)
    report["hnd unequal"] = rows("sglang_hnd", "float16", 2 * DIM)
    os.environ["SGLANG_USE_HND_KVCACHE"] = "0"
    memory_pool._use_aiter = True  # SGLang asks for it on AMD only; its kernel runs in Triton's interpreter
    os.environ["SGLANG_AITER_KV_CACHE_LAYOUT"] = "vectorized_5d"
    for dtype in ("bfloat16", "float32"):
        report[f"vectorized_5d {dtype}"] = rows("sglang_vectorized_5d", dtype, DIM)
    os.environ["SGLANG_AITER_KV_CACHE_LAYOUT"] = "nhd"
    report["latent"] = latent()
    report["fp4"] = fp4()
    for layout in ("layer_first", "page_first", "page_first_direct", "page_head", "page_unified"):
        report[f"host {layout}"] = host(layout)
        if layout != "page_head":
            report[f"latent host {layout}"] = latent_host(layout)
    report["host page_unified, a group for each head"] = host("page_unified", HEADS)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
