"""Whether vLLM's plan of its KV cache is what the model's files say: all layers and heads, as they are understood."""

from typing import Any

from kvlingua.adapters.vllm.versions import dtype_name
from kvlingua.adapters.vllm.views import registered_dtype
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import ModelDescription


def windows_of(groups: list[Any]) -> list[int | None]:
    """The sliding window of each KV cache group, in tokens; None where attention is full."""
    return [getattr(group.kv_cache_spec, "sliding_window", None) for group in groups]


def check_plan(description: ModelDescription, kv_cache_config: Any, block_size: int, ranks: int = 1) -> None:
    """Raise UnsupportedError unless a KVCacheConfig holds this model's layers, all of them, and of its heads what each
    of tensor-parallel `ranks` holds."""
    groups, layers = kv_cache_config.kv_cache_groups, description.geometry.layers
    for group in groups:
        _check_spec(description, group.kv_cache_spec, block_size, ranks)
    windowed = len(groups) > 1 or any(windows_of(groups))
    if windowed and ranks > 1:
        raise UnsupportedError("parallel", "models with a sliding window aren't supported on several ranks yet")
    if windowed and description.geometry.scales_per is not None:
        raise UnsupportedError("kv_dtype", "fp8 KV of models with a sliding window isn't supported yet: use auto")
    planned = sum(len(group.layer_names) for group in groups)
    if planned != layers:
        raise UnsupportedError("cache_shape", f"vLLM's KV cache has {planned} layers, the model's files say {layers}")


def _check_spec(description: ModelDescription, spec: Any, block_size: int, ranks: int) -> None:
    geometry, kind = description.geometry, type(spec).__name__
    latent = geometry.numbers[0].name == "latent"
    window = {**description.config, **description.overrides}.get("sliding_window")
    kinds = {"MLAAttentionSpec" if latent else "FullAttentionSpec": None}
    if window is not None:
        kinds["SlidingWindowSpec"] = window
    if (
        kind not in kinds
        or spec.sliding_window != kinds[kind]
        or getattr(spec, "attention_chunk_size", None) is not None
        or getattr(spec, "non_causal", False)
    ):
        raise UnsupportedError(
            "attention", f"a KV cache of {kind}, window {getattr(spec, 'sliding_window', None)}, isn't a plain one"
        )
    widths = [plane.width for plane in geometry.numbers]
    expected = {
        "kv heads": max(1, geometry.kv_heads // ranks),
        "K and V width": [sum(widths)] if latent else widths,
        "dtype": registered_dtype(geometry.dtype),
        "block size": block_size,
        "padding": None,
        "head slots": None,
        "packed bytes": None,
        "tokens per state": 1,
    }
    found = {
        "kv heads": spec.num_kv_heads,
        "K and V width": [spec.head_size] if latent else [spec.head_size, spec.head_size_v],
        "dtype": dtype_name(spec.dtype),
        "block size": spec.block_size,
        "padding": spec.page_size_padded,
        "head slots": spec.num_head_slots,
        "packed bytes": spec.state_content_bytes,
        "tokens per state": getattr(spec, "tokens_per_state", 1),
    }
    for what, value in expected.items():
        if found[what] != value:
            raise UnsupportedError(
                "cache_shape", f"vLLM's KV cache has {what} {found[what]}, expected {value} from the model's files"
            )
