"""What differs between the versions of vLLM that are supported; elsewhere the adapter is written for the newest."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvlingua.common.supported import VLLM

# What only these releases were run with; in other supported ones it is refused. Of no use with 0.28: windows, since it
# takes failed loads by block of one group only, and latent attention, with which it doesn't start on a CPU.
RUN_WITH: Mapping[str, tuple[str, ...]] = {
    "sliding windows": ("0.30", "0.31", "0.32"),
    "latent attention (MLA)": ("0.30", "0.31", "0.32"),
    "KV in fp8": ("0.28", "0.30", "0.31", "0.32"),
}

_BLOCKS_BY_STEPS = replace(VLLM, releases=("0.28",))
_ORDER_BEFORE_30 = "LBHNC"  # of the axes of a KV cache for CPUs, when there was only one


def was_run(what: str, version: str) -> bool:
    """Whether kvlingua was run with this in that version of vLLM."""
    return replace(VLLM, releases=RUN_WITH[what]).supports(version)


def says_blocks(version: str) -> bool:
    """Whether vLLM tells its connector, when asked, which blocks a request has, and takes failed loads by request. 0.28
    tells the blocks that a step adds, and takes failed loads by block."""
    return not _BLOCKS_BY_STEPS.supports(version)


def axes_of(kv_cache_config: Any) -> str | None:
    """In which order the axes of the KV cache lie in memory, by vLLM's letters."""
    return getattr(kv_cache_config, "kv_cache_layout", _ORDER_BEFORE_30)


def kernel_of(layer: Any) -> str | None:
    """Which kernel of the backend's this attention layer runs. Before 0.30 its implementation knew, not the layer."""
    return getattr(layer, "isa", None) or getattr(getattr(layer, "impl", None), "isa", None)


def dtype_name(dtype: Any) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")
