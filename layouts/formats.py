"""The known layouts, one row each. How to read a row: docs/format/layout.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.layout import Layout

_ROWS = {
    # What kvlingua stores: a block is a chunk, and any range of heads is one run of bytes.
    "canonical": "| block (k: head layer token dim) (v: head layer token dim)",
    # transformers' DynamicCache: keys and values [batch row, head, token, dim], one tensor each per layer.
    "hf": "layer plane | head token dim",
    # vLLM's two usual orders (HND and NHD), K and V side by side in the last axis.
    "vllm_lbhnc": "layer | block head token (k: dim) (v: dim)",
    "vllm_lbnhc": "layer | block token head (k: dim) (v: dim)",
    # vLLM's CPU backend, kernels `vec` and `vec16`: within a block and head all of K, transposed, then all of V.
    "vllm_cpu_vec": "layer | block head (k: dim token) (v: token dim)",
    "vllm_cpu_vec16": "layer | block head (k: dim token) (v: token dim)",
    # SGLang: a row per token slot, or pages with heads outside tokens. At page size 1 a block is a slot.
    "sglang_nhd": "layer plane | block token head dim",
    "sglang_hnd": "layer plane | block head token dim",
}

FORMATS: Mapping[str, Layout] = MappingProxyType({name: Layout(name, spec) for name, spec in _ROWS.items()})
"""Known layouts by name."""


def format(name: str) -> Layout:
    """The layout called `name`; LayoutError names the known ones."""
    try:
        return FORMATS[name]
    except KeyError:
        raise LayoutError(f"layout {name!r} isn't known; known are {', '.join(FORMATS)}") from None
