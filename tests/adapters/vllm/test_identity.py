"""What of vLLM's settings is refused, of those that need no engine to be made. Others: tests/engines/vllm."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from kvlingua.adapters.vllm.identity import refusals


def first_refusal(
    version: str, *, ranks: int = 1, lora: object = None, dtype: str = "float32", cache: str = "auto"
) -> tuple[str, str]:
    """Of a model with latent attention."""
    sizes = ("pipeline_parallel", "prefill_context_parallel", "decode_context_parallel", "data_parallel")
    isnt = "is_encoder_decoder", "is_attention_free", "is_diffusion", "is_hybrid"
    model: dict[str, Any] = dict.fromkeys(isnt, False)
    config = SimpleNamespace(
        model_config=SimpleNamespace(runner_type="generate", use_mla=True, dtype=f"torch.{dtype}", **model),
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks, **{f"{name}_size": 1 for name in sizes}),
        cache_config=SimpleNamespace(cache_dtype=cache),
        device_config=SimpleNamespace(device_type="cpu"),
        lora_config=lora,
    )
    return next(refusals(config, SimpleNamespace(kv_cache_groups=[], has_mamba_layers=False), version))


@pytest.mark.parametrize(
    ("version", "options", "reason", "message"),
    [
        ("0.28.0", {}, "mla", "never run with vLLM 0.28.0"),
        ("0.31.0", {"dtype": "float16"}, "mla", "in float16 isn't supported yet"),
        ("0.32.0", {"dtype": "bfloat16"}, "mla", "in bfloat16 isn't supported yet"),
        ("0.32.0+cpu", {"ranks": 2}, "parallel", "latent attention.*several ranks"),
        ("0.32.0", {"lora": object()}, "lora", "latent attention"),
        ("0.32.0", {"cache": "fp8"}, "kv_dtype", "fp8 isn.t supported yet for latent attention: use auto"),
    ],
)
def test_latent_attention(version: str, options: dict[str, Any], reason: str, message: str) -> None:
    found, said = first_refusal(version, **options)
    assert found == reason
    assert re.search(message, said)
