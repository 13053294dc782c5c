"""What differs between the versions of vLLM that are supported; elsewhere the adapter is written for the newest."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvlingua.common.supported import VLLM

# What only these releases were run with; in other supported ones it is refused.
RUN_WITH: Mapping[str, tuple[str, ...]] = {
    "tensor parallelism": ("0.32",),
    "sliding windows": ("0.32",),
    "latent attention (MLA)": ("0.32",),
    "LoRA adapters": ("0.32",),
    "KV in fp8": (),  # no CPU at hand had vLLM's kernels for it (test_fp8.py)
}


def was_run(what: str, version: str) -> bool:
    """Whether kvlingua was run with this in that version of vLLM."""
    return replace(VLLM, releases=RUN_WITH[what]).supports(version)


def kernel_of(layer: Any) -> str | None:
    """Which kernel of the backend's this attention layer runs. Before 0.30 its implementation knew, not the layer."""
    return getattr(layer, "isa", None) or getattr(getattr(layer, "impl", None), "isa", None)


def dtype_name(dtype: Any) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")
