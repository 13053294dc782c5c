"""The known layouts, one row each. How to read a row: docs/format/layout.md; the table of them: docs/layouts.md."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.layout import Layout

Keeps = Literal["kv", "mla", "scaled", "fp4"]


@dataclass(frozen=True, slots=True)
class Row:
    """A known layout: its name, its spec, whose memory it describes, and which of that engine's caches.

    keeps: what that engine keeps so. kv: planes k and v; mla: latent and rope; scaled: k and v in fp8 with a scale per
    token and head; fp4: k and v in fp4 with scales.
    """

    name: str
    spec: str
    engine: str
    what: str
    keeps: tuple[Keeps, ...] = ("kv",)


VLLM, VLLM_CPU, VLLM_AMD, VLLM_OLD = "vLLM 0.32", "vLLM 0.32, CPUs", "vLLM 0.32, AMD", "vLLM before 0.32"
SGLANG, HICACHE = "SGLang 0.5.23", "SGLang 0.5.23, HiCache"
HF, LLAMA, TRT, LMCACHE = "transformers 5", "llama.cpp", "TensorRT-LLM", "LMCache 0.5.6"

ROWS: tuple[Row, ...] = (
    Row(
        "canonical",
        "| block (*: head layer token dim)",
        "kvlingua",
        "what kvlingua stores: a block is a chunk, any range of heads is one run of bytes per plane",
        ("kv", "mla", "scaled", "fp4"),
    ),
    # vLLM's six orders of [L, B, H, N, C]; C is K then V.
    Row(
        "vllm_lbhnc", "layer | block head token (k: dim) (v: dim)", VLLM, "LBHNC, also called HND; pages may be padded"
    ),
    Row(
        "vllm_lbnhc", "layer | block token head (k: dim) (v: dim)", VLLM, "LBNHC, also called NHD; pages may be padded"
    ),
    Row("vllm_lhbnc", "layer | head block token (k: dim) (v: dim)", VLLM, "LHBNC: a head's blocks lie together"),
    Row("vllm_blhnc", "| block layer head token (k: dim) (v: dim)", VLLM, "BLHNC: a block holds all layers, HND"),
    Row("vllm_blnhc", "| block layer token head (k: dim) (v: dim)", VLLM, "BLNHC: a block holds all layers, NHD"),
    Row("vllm_bhlnc", "| block head layer token (k: dim) (v: dim)", VLLM, "BHLNC: a block holds all layers of a head"),
    # The CPU backend registers [B, H, N, 2 * D] whatever its kernels write: per block and head all of K, then all of V.
    Row("vllm_cpu_vec", "layer | block head (k: dim token) (v: token dim)", VLLM_CPU, "kernels vec: K transposed"),
    Row("vllm_cpu_vec16", "layer | block head (k: dim token) (v: token dim)", VLLM_CPU, "kernels vec16: as vec"),
    Row(
        "vllm_cpu_amx",
        "layer | block head (k: token/16 dim/2 token%16 dim%2) (v: dim/16 token/2 dim%16 token%2)",
        VLLM_CPU,
        "kernels amx: tiles of 16 rows of pairs, for numbers of 2 bytes and of 1",
    ),
    Row(
        "vllm_cpu_neon",
        "layer | block head (k: token/8 dim/4 token%8 dim%4) (v: dim/2 token/4 dim%2 token%4)",
        VLLM_CPU,
        "kernels neon with bf16 on Arm with BFMMLA; other numbers there lie as with vec",
    ),
    Row(
        "vllm_mla",
        "layer | block head token (latent: dim) (rope: dim)",
        VLLM,
        "latent attention: [B, 1, N, 576]",
        ("mla",),
    ),
    # fp8_per_token_head: a float32 behind each head's numbers.
    Row(
        "vllm_lbhnc_scaled",
        "layer | block head token (k: dim) (k_scale: dim) (v: dim) (v_scale: dim)",
        VLLM,
        "LBHNC with one scale per token and head (fp8_per_token_head)",
        ("scaled",),
    ),
    Row(
        "vllm_lbnhc_scaled",
        "layer | block token head (k: dim) (k_scale: dim) (v: dim) (v_scale: dim)",
        VLLM,
        "LBNHC with one scale per token and head (fp8_per_token_head)",
        ("scaled",),
    ),
    Row("sglang_nhd", "layer plane | block token head dim", SGLANG, "a row per token slot; fp8 is kept as bytes"),
    Row("sglang_hnd", "layer plane | block head token dim", SGLANG, "pages [page, H, N, D] (SGLANG_USE_HND_KVCACHE)"),
    Row(
        "sglang_mla",
        "layer | block token head (latent: dim) (rope: dim)",
        SGLANG,
        "latent attention: rows [slot, 1, 576]",
        ("mla",),
    ),
    Row(
        "hf",
        "layer plane | head token dim",
        HF,
        "one batch row of a dynamic cache: keys, values [H, T, D]; of DeepSeek: latent, rope",
        ("kv", "mla"),
    ),
    Row(
        "hf_static",
        "layer plane | block head token dim",
        HF,
        "a static cache [B, H, max_cache_len, D]: a block is a batch row",
        ("kv", "mla"),
    ),
    Row(
        "hf_sliding",
        "layer plane | head token dim",
        HF,
        "a batch row of a sliding window: the last tokens, sliced from a longer tensor, or rolled: then two views",
        ("kv", "mla"),
    ),
    Row("hf_paged", "| block layer (k: token head dim) (v: token head dim)", HF, "blocks of continuous batching"),
    # AMD: K in tiles of 16 bytes. vLLM gives K and V one head slot each: apart (LHBNC) or in turns (LBHNC).
    Row(
        "vllm_rocm",
        "layer | (k: block head dim/16B token dim%16B) (v: block head dim token)",
        VLLM_AMD,
        "ROCM_ATTN on LHBNC: K of all blocks, then V, which is transposed",
    ),
    Row(
        "vllm_rocm_lbhnc",
        "layer | block (k: head dim/16B token dim%16B) (v: head dim token)",
        VLLM_AMD,
        "ROCM_ATTN on LBHNC: K, then V, block by block",
    ),
    Row(
        "vllm_aiter",
        "layer | (k: block head dim/16B token dim%16B) (v: block head token/16B dim token%16B)",
        VLLM_AMD,
        "ROCM_AITER_FA, shuffled, on LHBNC: K of all blocks, then V",
    ),
    Row(
        "vllm_aiter_lbhnc",
        "layer | block (k: head dim/16B token dim%16B) (v: head token/16B dim token%16B)",
        VLLM_AMD,
        "ROCM_AITER_FA, shuffled, on LBHNC: K, then V, block by block",
    ),
    Row(
        "sglang_vectorized_5d",
        "layer plane | block head (k: dim/16B token dim%16B) (v: token/16B dim token%16B)",
        "SGLang 0.5.23, AMD",
        "AITER's tiles of 16 bytes (SGLANG_AITER_KV_CACHE_LAYOUT)",
    ),
    Row(
        "vllm_2bnhd",
        "layer | (k: block token head dim) (v: block token head dim)",
        VLLM_OLD,
        "[2, B, N, H, D]: FlashAttention, NHD",
    ),
    Row(
        "vllm_2bhnd",
        "layer | (k: block head token dim) (v: block head token dim)",
        VLLM_OLD,
        "[2, B, H, N, D]: FlashAttention, HND",
    ),
    Row(
        "vllm_b2nhd",
        "layer | block (k: token head dim) (v: token head dim)",
        VLLM_OLD,
        "[B, 2, N, H, D]: FlashInfer, NHD; still B12X",
    ),
    Row(
        "vllm_b2hnd",
        "layer | block (k: head token dim) (v: head token dim)",
        VLLM_OLD,
        "[B, 2, H, N, D]: FlashInfer, HND",
    ),
    Row(
        "hicache_layer_first",
        "| (k: layer block token head dim) (v: layer block token head dim)",
        HICACHE,
        "[2, L, size, H, D]",
    ),
    Row(
        "hicache_page_first",
        "| (k: block token layer head dim) (v: block token layer head dim)",
        HICACHE,
        "[2, size, L, H, D]",
    ),
    Row(
        "hicache_page_first_direct",
        "| (k: block layer token head dim) (v: block layer token head dim)",
        HICACHE,
        "[2, pages, L, N, H, D]",
    ),
    Row(
        "hicache_page_head",
        "| (k: block head token layer dim) (v: block head token layer dim)",
        HICACHE,
        "[2, pages, H, N, L, D]",
    ),
    Row(
        "hicache_page_unified",
        "| block layer (k: token head dim) (v: token head dim)",
        HICACHE,
        "[pages, 1, L, 2, N, H, D]",
    ),
    Row(
        "hicache_page_unified_heads",
        "| block head layer (k: token dim) (v: token dim)",
        HICACHE,
        "[pages, H, L, 2, N, 1, D]: a group for each head",
    ),
    Row(
        "hicache_mla_layer_first",
        "| layer block token head (latent: dim) (rope: dim)",
        HICACHE,
        "[L, size, 1, 576]",
        ("mla",),
    ),
    Row(
        "hicache_mla_page_first",
        "| block token layer head (latent: dim) (rope: dim)",
        HICACHE,
        "[size, L, 1, 576]",
        ("mla",),
    ),
    Row(
        "hicache_mla_page_first_direct",
        "| block layer token head (latent: dim) (rope: dim)",
        HICACHE,
        "[pages, L, N, 1, 576]; page_unified too",
        ("mla",),
    ),
    Row("llamacpp", "plane layer | token head dim", LLAMA, "a saved state: rows of K for each layer, then of V"),
    Row(
        "llamacpp_v_trans",
        "plane layer | (k: token head dim) (v: head dim token)",
        LLAMA,
        "a saved state without flash attention: V transposed",
    ),
    Row("trtllm_hnd", "| block layer (k: head token dim) (v: head token dim)", TRT, "the pool [B, L, 2, H, N, D]"),
    Row("lmcache_2ltd", "| (k: layer token head dim) (v: layer token head dim)", LMCACHE, "KV_2LTD: [2, L, T, H * D]"),
    Row("lmcache_t2d", "layer | token (k: head dim) (v: head dim)", LMCACHE, "KV_T2D: [T, 2, H * D]"),
    Row("lmcache_2td", "layer | (k: token head dim) (v: token head dim)", LMCACHE, "KV_2TD: [2, T, H * D]"),
    Row("lmcache_mla", "| layer token head (latent: dim) (rope: dim)", LMCACHE, "KV_MLA_FMT: [1, L, T, 576]", ("mla",)),
    Row(
        "sglang_fp4",
        "layer plane | block token head (k: dim) (v: dim) (k_scale: dim) (v_scale: dim)",
        SGLANG,
        "rows of 2 fp4 numbers a byte, and of a scale byte for each 16; moved, never cast",
        ("fp4",),
    ),
)
"""All rows, in the order of the table in docs/layouts.md."""

OPAQUE: Mapping[str, str] = MappingProxyType(
    {
        "vllm_nvfp4": "4-bit numbers and swizzled fp8 scales share a head's slot, in an order of FlashInfer's own",
        "vllm_turboquant": "numbers are rotated and quantised to codebook indices, K and V packed into one slot",
        "vllm_ultraquant": "4-bit numbers and their scales are packed into one slot per head, K and V together",
        "vllm_fp8_ds_mla": "a token's 656 bytes are 512 fp8 numbers, 4 scales of 128 each, and 64 bf16 numbers",
        "vllm_int4_per_token_head": "numbers are rotated (Hadamard) and packed in pairs with zero points",
        "sglang_mxfp8": "scales are powers of two per 32 dims, interleaved for the kernels that read them",
        "hf_quantized": "quantised blocks of past tokens and a residual in full precision, in the quantiser's own form",
        "llamacpp_q8_0": "blocks of 32 numbers with their scale, rotated (Hadamard) for most head sizes",
    }
)
"""Arrangements known by name that aren't described, each with the reason."""

FORMATS: Mapping[str, Layout] = MappingProxyType({row.name: Layout(row.name, row.spec) for row in ROWS})
"""Known layouts by name."""


def format(name: str) -> Layout:
    """The layout called `name`. Raises LayoutError: it isn't known, or it is and can't be described."""
    if not isinstance(name, str):
        raise LayoutError(f"a layout is asked for by its name, as 'vllm_lbhnc', not by {name!r}")
    if name in FORMATS:
        return FORMATS[name]
    if name in OPAQUE:
        raise _opaque(name)
    for known in OPAQUE:
        if known.partition("_")[2] == name.lower():  # an engine's own word for it, as kv_cache_dtype takes it
            raise _opaque(known)
    near = difflib.get_close_matches(name.lower(), [*FORMATS, *OPAQUE], n=3, cutoff=0.85)
    meant = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(FORMATS)}"
    raise LayoutError(f"layout {name!r} isn't known; {meant}")


def _opaque(name: str) -> LayoutError:
    return LayoutError(f"layout {name!r} can't be described, so it is neither stored nor converted: {OPAQUE[name]}")
