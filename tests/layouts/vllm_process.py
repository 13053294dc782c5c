"""Runs where vLLM is: its own code fills its caches, some kernels in Triton's interpreter, and our rows must agree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
import vllm.triton_utils
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheLayout,
    KVCacheTensor,
    KVQuantMode,
    MLAAttentionSpec,
    compute_layout_strides,
    create_kv_cache_views,
)

from kvlingua.layouts import Geometry
from tests.layouts.written_by import TORCH, Planes, agrees, numbers, slots


def interpreted(name: str) -> Any:
    """A module of vLLM whose Triton kernels run in the interpreter (TRITON_INTERPRET=1); on CPUs vLLM goes without."""
    sys.modules.update({"triton": triton, "triton.language": tl})
    vllm.triton_utils.triton, vllm.triton_utils.tl = triton, tl
    return importlib.import_module(name)


writers = interpreted("vllm.v1.attention.ops.triton_reshape_and_cache_flash")
triton_attn = interpreted("vllm.v1.attention.backends.triton_attn")
paged_attn = interpreted("vllm.v1.attention.ops.paged_attn")
cpu_mla = interpreted("vllm.v1.attention.backends.mla.cpu_mla")
torch.cuda.get_device_capability = lambda *_: (9, 0)  # asked for a tile's size only
current_platform.import_kernels()

LAYERS, HEADS, DIM, PAGE, BLOCKS = 2, 3, 32, 16, 4
ONE = torch.tensor(1.0)


def views(spec: Any, order: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """vLLM's memory for LAYERS layers, and its view of each."""
    layout = KVCacheLayout[order]
    layer, block, *_ = compute_layout_strides(spec, BLOCKS, LAYERS, layout)
    raw = torch.zeros(LAYERS * BLOCKS * spec.page_size_bytes, dtype=torch.int8)
    names = [str(index) for index in range(LAYERS)]
    tensor = KVCacheTensor(size=raw.numel(), layers=names, layer_stride=layer, block_stride=block)
    return raw, create_kv_cache_views(raw, spec, BLOCKS, layout, tensor)


def claims(order: str, caches: list[torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, int]]:
    """What an adapter gives our row: tensors, and the strides they have."""
    item = caches[0].element_size()
    strides = dict(zip(("block", "head", "token"), (stride * item for stride in caches[0].stride()), strict=False))
    if order[0] == "L":
        return caches, strides
    return [], strides | {"layer": (caches[1].storage_offset() - caches[0].storage_offset()) * item}


def packed(order: str, v_dim: int, padded: int) -> bool:
    """The six orders of [L, B, H, N, C], written by Triton's kernels for FlashAttention's cache."""
    spec = FullAttentionSpec(
        block_size=PAGE,
        num_kv_heads=HEADS,
        head_size=DIM,
        head_size_v=v_dim,
        dtype=torch.bfloat16,
        page_size_padded=HEADS * PAGE * (DIM + v_dim) * 2 + padded if padded else None,
    )
    raw, caches = views(spec, order)
    geometry = Geometry.kv(LAYERS, HEADS, DIM, "bfloat16", v_dim)
    planes = numbers(geometry)

    def write() -> None:
        for layer, cache in enumerate(caches):
            new = planes["k"][layer], planes["v"][layer]
            at = slots(BLOCKS, PAGE), "auto", ONE, ONE
            if v_dim == DIM:
                writers.triton_reshape_and_cache_flash(*new, *cache.transpose(1, 2).split(DIM, dim=-1), *at)
            else:
                writers.triton_reshape_and_cache_flash_diffkv(*new, cache.transpose(1, 2), *at)

    buffers, strides = claims(order, caches)
    where = {"page": PAGE, "blocks": BLOCKS, "buffers": buffers, "strides": strides}
    return agrees(f"vllm_{order.lower()}", geometry, planes, [raw], write, **where)


def latent() -> bool:
    """[B, 1, N, 576], written by CPUMLAImpl."""
    spec = MLAAttentionSpec(block_size=PAGE, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    raw, caches = views(spec, "LBHNC")
    geometry = Geometry.mla(LAYERS, 512, 64, "bfloat16")
    planes = numbers(geometry)
    impl = object.__new__(cpu_mla.CPUMLAImpl)

    def write() -> None:
        for layer, cache in enumerate(caches):
            new = planes["latent"][layer, :, 0], planes["rope"][layer, :, 0]
            impl.do_kv_cache_update(*new, cache.squeeze(1), slots(BLOCKS, PAGE), "auto", ONE)

    return agrees("vllm_mla", geometry, planes, [raw], write, page=PAGE, blocks=BLOCKS, buffers=caches)


def scaled(order: str) -> bool:
    """fp8_per_token_head: TritonAttentionImpl carves K, V and scales out of a view; its kernel quantises."""
    spec = triton_attn.TritonAttentionBackend.customize_spec(
        FullAttentionSpec(
            block_size=PAGE,
            num_kv_heads=HEADS,
            head_size=DIM,
            dtype=torch.uint8,
            kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD,
        )
    )
    raw, caches = views(spec, order)
    geometry = Geometry.kv(LAYERS, HEADS, DIM, "float8_e4m3fn", scales="token")
    new = numbers(Geometry.kv(LAYERS, HEADS, DIM, "float32"))
    planes: dict[str, torch.Tensor] = {}
    for name, values in new.items():
        values[..., 0] = 448.0  # the scale is a power of two, one for each layer: nothing is rounded
        values *= torch.tensor([1.0, 0.25])[:, None, None, None]
        scale = (values.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-6)
        planes |= {name: (values * (1.0 / scale)).to(torch.float8_e4m3fn), f"{name}_scale": scale}

    def write() -> None:
        for layer, cache in enumerate(caches):
            impl = object.__new__(triton_attn.TritonAttentionImpl)
            impl._kv_quant_mode, impl.fp8_dtype = spec.kv_quant_mode, torch.float8_e4m3fn
            split = impl._pth_key_value_caches(cache)
            for scales in (impl._k_scale_cache, impl._v_scale_cache):
                scales.zero_()  # where no token is
            writers.triton_reshape_and_cache_flash_per_token_head_quant(
                new["k"][layer],
                new["v"][layer],
                *split,
                impl._k_scale_cache,
                impl._v_scale_cache,
                slots(BLOCKS, PAGE),
                spec.kv_quant_mode,
            )

    _, strides = claims(order, caches)
    where = {"page": PAGE, "blocks": BLOCKS, "buffers": caches, "strides": strides}
    return agrees(f"vllm_{order.lower()}_scaled", geometry, planes, [raw], write, **where)


def cpu(isa: str, dtype: str) -> bool:
    """The CPU backend's own C++ writer, as CPUAttentionBackendImpl.do_kv_cache_update calls it."""
    page, fp8 = 32, dtype.startswith("float8")
    geometry = Geometry.kv(LAYERS, HEADS, DIM, dtype)
    planes = numbers(geometry)
    caches = [torch.zeros(BLOCKS, HEADS, page, 2 * DIM, dtype=TORCH[dtype]) for _ in range(LAYERS)]

    def write() -> None:
        for layer, cache in enumerate(caches):
            kv_cache = cache.view(torch.uint8) if fp8 else cache
            new = [planes[name][layer].to(torch.bfloat16) if fp8 else planes[name][layer] for name in ("k", "v")]
            halves = kv_cache.view(BLOCKS, HEADS, page * 2, -1).chunk(2, dim=2)
            kind = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}.get(dtype, "auto")
            ops.cpu_attn_reshape_and_cache(*new, *halves, slots(BLOCKS, page), isa, 1.0, 1.0, kind)

    return agrees(f"vllm_cpu_{isa}", geometry, planes, caches, write, page=page, blocks=BLOCKS)


def two_slots(dtype: str, blocks_first: bool) -> tuple[Geometry, Planes, list[torch.Tensor], list[torch.Tensor]]:
    """K and V as two head slots, on LHBNC or LBHNC: geometry, numbers, memory and vLLM's views [B, 2, N, H * D]."""
    geometry = Geometry.kv(LAYERS, HEADS, DIM, dtype)
    shape = (BLOCKS, 2, PAGE, HEADS * DIM) if blocks_first else (2, BLOCKS, PAGE, HEADS * DIM)
    memory = [torch.zeros(shape, dtype=TORCH[dtype]) for _ in range(LAYERS)]
    return geometry, numbers(geometry), memory, [m if blocks_first else m.transpose(0, 1) for m in memory]


def rocm(dtype: str, blocks_first: bool) -> bool:
    """ROCM_ATTN: split_kv_cache and the Triton writer of RocmAttentionImpl.do_kv_cache_update."""
    geometry, planes, memory, caches = two_slots(dtype, blocks_first)

    def write() -> None:
        for layer, cache in enumerate(caches):
            split = paged_attn.PagedAttention.split_kv_cache(cache.transpose(0, 1), HEADS, DIM)
            new = planes["k"][layer], planes["v"][layer]
            writers.triton_reshape_and_cache_flash(*new, *split, slots(BLOCKS, PAGE), "auto", ONE, ONE)

    row = "vllm_rocm_lbhnc" if blocks_first else "vllm_rocm"
    return agrees(row, geometry, planes, memory, write, page=PAGE, blocks=BLOCKS)


def aiter(dtype: str, blocks_first: bool) -> bool:
    """ROCM_AITER_FA: the kernel that shuffles, which vLLM defines on AMD only, taken from its file by name."""
    geometry, planes, memory, caches = two_slots(dtype, blocks_first)
    kernel = shuffle_kernel()

    def write() -> None:
        for layer, cache in enumerate(caches):
            key, value = planes["k"][layer], planes["v"][layer]
            key_cache, value_cache = cache.unflatten(-1, (HEADS, DIM)).unbind(1)
            x = 16 // key_cache.element_size()
            strides = key.stride(0), value.stride(0), key_cache.stride(0), value_cache.stride(0)
            at = slots(BLOCKS, PAGE), ONE, ONE, x, *strides, PAGE, DIM, HEADS
            kernel[(len(key), HEADS)](key, value, key_cache, value_cache, *at, BLOCK_SIZE=DIM, QUANT=False)

    row = "vllm_aiter_lbhnc" if blocks_first else "vllm_aiter"
    return agrees(row, geometry, planes, memory, write, page=PAGE, blocks=BLOCKS)


def shuffle_kernel() -> Any:
    source = (Path(triton_attn.__file__).parent / "rocm_aiter_fa.py").read_text()
    name = "reshape_and_cache_shuffle_kernel"
    found = next(node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.py"
        file.write_text(f"import triton\nimport triton.language as tl\n\n\n{ast.unparse(found)}\n")
        spec = importlib.util.spec_from_file_location("kernel", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)


def main() -> None:
    report = {}
    for layout in KVCacheLayout:
        for v_dim in (DIM, 2 * DIM):
            report[f"{layout.name} {v_dim}"] = packed(layout.name, v_dim, 0)
        if layout.is_block_compact:
            report[f"{layout.name} padded"] = packed(layout.name, DIM, 512)
    report["latent"] = latent()
    report |= {f"scaled {order}": scaled(order) for order in ("LBHNC", "LBNHC")}
    report |= {f"cpu {isa} {dtype}": cpu(isa, dtype) for isa in ("vec", "vec16") for dtype in ("float32", "bfloat16")}
    if torch.backends.cpu.get_cpu_capability() != "AVX2":  # for which vLLM builds neither of these
        report |= {f"cpu vec {dtype}": cpu("vec", dtype) for dtype in ("float8_e4m3fn", "float8_e5m2")}
    if torch.cpu._is_amx_tile_supported():
        report |= {f"cpu amx {dtype}": cpu("amx", dtype) for dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}
    for first in (False, True):
        for dtype in ("bfloat16", "float32"):
            report[f"rocm {dtype} {first}"] = rocm(dtype, first)
            report[f"aiter {dtype} {first}"] = aiter(dtype, first)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
