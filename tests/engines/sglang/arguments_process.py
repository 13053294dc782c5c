"""SGLang's real ServerArgs, resolved, against the adapter's list of what it understands; and a start that fails."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.server_args import ServerArgs

from kvlingua.adapters.sglang.connection import Connection
from kvlingua.adapters.sglang.identity import check_arguments, check_context, describe, is_own
from kvlingua.adapters.sglang.link import Link
from kvlingua.adapters.sglang.releases import ALL_WAS_RUN
from kvlingua.adapters.sglang.start import connect
from kvlingua.adapters.sglang.views import describe_pool
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import describe_model

LORA: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj"]}
# Arguments in Python's spelling, and the argument that must be named in the refusal.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "pipeline parallel": ({"pp_size": 2}, "--pp-size"),
    "no radix cache": ({"disable_radix_cache": True}, "--disable-radix-cache"),
    "another device": ({"device": "cuda"}, "--device"),
    "LoRA's kernels for GPUs": (LORA, "--lora-backend"),
    "adapters that come later": (
        {**LORA, "lora_backend": "torch_native", "enable_lora_overlap_loading": True},
        "--enable-lora-overlap-loading",
    ),
    "HiCache": ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
    "LMCache": ({"enable_lmcache": True}, "--enable-lmcache"),
    "speculation": ({"speculative_algorithm": "NGRAM"}, "--speculative-algorithm"),
    "prefill server": ({"disaggregation_mode": "prefill"}, "--disaggregation-mode"),
    "decode server": ({"disaggregation_mode": "decode"}, "--disaggregation-mode"),
    "fp8 KV": ({"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype"),
    "late weights": ({"checkpoint_engine_wait_weights_before_ready": True}, "--checkpoint-engine-wait"),
    "hooks in the model": ({"forward_hooks": [{"name": "x"}]}, "--forward-hooks"),
}
# What a rope of this kind scales, 4096 tokens, and overrides of config.json that make it one.
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 512},
}
PLAIN = {"device": "cpu", "attention_backend": "torch_native", "max_total_tokens": 4096, "disable_cuda_graph": True}


def outcome(model: str, changes: dict[str, Any], kind: type[Connection] = Link, page: int = 64) -> str:
    try:
        arguments = ServerArgs(model_path=model, **(PLAIN | changes))
        arguments.resolve_once()
    except Exception as error:  # noqa: BLE001  SGLang refuses some combinations here by itself
        return f"SGLang: {type(error).__name__}: {error}"

    def check() -> None:
        check_arguments(arguments, kind.arguments)
        kind.check(arguments, page, 64)

    return refusal(check)


def linked(model: str) -> dict[str, str]:
    from kvlingua.adapters.sglang.linker import LinkedPages  # 0.5.20 and 0.5.21 lack what this needs

    config = {"linker": "KVLinguaLinker", "linker_module_path": "kvlingua.adapters.sglang.linker"}
    flags = {
        "enable_unified_cache_external_linker": True,
        "unified_cache_external_linker_backend": "dynamic",
        "unified_cache_external_linker_config": config,
    }
    found = {
        "pages as chunks": outcome(model, flags, LinkedPages),
        "shorter pages": outcome(model, flags, LinkedPages, page=16),
        "streaming sessions": outcome(model, flags | {"enable_streaming_session": True}, LinkedPages),
        "LoRA": outcome(model, {**flags, **LORA, "lora_backend": "torch_native"}, LinkedPages),
        "beside the flag": outcome(model, flags),
    }
    with patch("kvlingua.adapters.sglang.pages.request_seed", lambda extra_key, salt: b""):
        return found | {"other hashes": outcome(model, flags, LinkedPages)}


def contexts(model: str) -> dict[str, str]:
    """Contexts of 4096 tokens and longer ones, by the kind of rope."""
    found = {}
    for kind, numbers in ROPES.items():
        rope = {"rope_type": kind, "rope_theta": 10000.0, **numbers}
        overrides = {"rope_parameters": rope, "max_position_embeddings": 2048}
        description = describe_model(model, overrides=overrides, compute_dtype="float32", kv_dtype="float32")
        for name, tokens in ((kind, 4096), (f"{kind}, longer", 4097)):
            found[name] = refusal(lambda described=description, tokens=tokens: check_context(described, tokens))
    return found


def implementations() -> list[bool]:
    """Whether SGLang's Llama is its own, and what it takes for models that it has none of."""
    from sglang.srt.models.llama import LlamaForCausalLM
    from sglang.srt.models.transformers import TransformersForCausalLM

    return [is_own(object.__new__(kind)) for kind in (LlamaForCausalLM, TransformersForCausalLM)]


def never_run(version: str) -> str:
    with patch("sglang.__version__", version):
        return refusal(lambda: describe(None))


def refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except UnsupportedError as error:
        return str(error)
    return "understood"


def registered() -> list[str]:
    """SGLang's backends after the entry point was called twice, as it may be."""
    for entry_point in entry_points(group="sglang.srt.plugins", name="kvlingua"):
        for _ in range(2):
            entry_point.load()()
    return registered_radix_cache_backends()


def main() -> None:
    model, of_hub = sys.argv[1:]
    report: dict[str, Any] = {"registered": registered(), "plain": outcome(model, {}), "cases": {}}
    report["places"] = {
        "hub": outcome(of_hub, {}),
        "hub, elsewhere": outcome(of_hub, {"download_dir": "elsewhere"}),
        "folder": outcome(model, {"download_dir": "elsewhere"}),
    }
    report["contexts"] = contexts(model)
    report["own"] = implementations()
    report["never run"] = never_run("0.5.19")
    report["LoRA"] = outcome(model, {**LORA, "lora_backend": "torch_native"})
    report["two ranks"] = outcome(model, {"tp_size": 2})
    report["linked"] = linked(model) if ALL_WAS_RUN else {}
    report["unforeseen"] = connect(
        SimpleNamespace(tp_rank=0), Link, describe_pool
    )  # what an SGLang that isn't known might hand over
    for name, (changes, named) in CASES.items():
        report["cases"][name] = {"named": named, "outcome": outcome(model, changes)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
