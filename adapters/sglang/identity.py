"""What this SGLang computes: its resolved arguments -> a description of the model, or the reason why there is none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvlingua.adapters.sglang.releases import ABSENT, ALL_WAS_RUN, UNSCALED_BEYOND, VERSION
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.supported import SGLANG

# Arguments that must have one of the given values, by name, and what is said otherwise: everything that changes KV, or
# where it lies, or moves it too, and isn't understood here. Read from SGLang 0.5.23's whole list.
_REQUIRED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("device", ("cpu",), "only the CPU is supported so far"),
    ("pp_size", (1,), "pipeline parallelism isn't supported yet"),
    ("enable_dp_attention", (False,), "attention data parallelism isn't supported yet"),
    ("attn_dp_size", (1,), "attention data parallelism isn't supported yet"),
    ("attn_cp_size", (1,), "context parallelism isn't supported yet"),
    ("dcp_size", (1,), "context parallelism isn't supported yet"),
    ("dwdp_size", (1,), "weights spread over data-parallel ranks aren't supported"),
    ("enable_kv_cache_sharding", (False,), "a sharded KV cache isn't supported yet"),
    ("elastic_ep_backend", (None,), "elastic expert parallelism isn't supported"),
    ("speculative_algorithm", (None,), "speculative decoding isn't supported yet"),
    ("decoupled_spec_role", ("null",), "speculative decoding isn't supported yet"),
    ("disaggregation_mode", ("null",), "prefill and decode on separate servers aren't supported yet"),
    ("disaggregation_decode_retraction_backup", (None, "none", "cpu_tensor"), "a host pool isn't supported"),
    ("enable_pd_role_switch", (False,), "prefill and decode on separate servers aren't supported yet"),
    ("enable_pdmux", (False,), "multiplexed prefill and decode aren't supported"),
    ("encoder_only", (False,), "encoder servers aren't supported"),
    ("language_only", (False,), "encoder servers aren't supported"),
    ("enable_hierarchical_cache", (False,), "HiCache moves the same KV; use one of the two"),
    ("hicache_storage_backend", (None,), "HiCache moves the same KV; use one of the two"),
    ("enable_unified_cache_external_linker", (False,), "a cache linker moves the same KV; use one of the two"),
    ("enable_lmcache", (False,), "LMCache moves the same KV; use one of the two"),
    ("enable_flexkv", (False,), "FlexKV moves the same KV; use one of the two"),
    ("enable_hisparse", (False,), "sparse attention isn't supported yet"),
    ("enable_page_major_kv_layout", (False,), "this layout of the KV cache isn't supported yet"),
    ("enable_unified_memory", (False,), "memory shared among pools isn't supported"),
    ("prefill_only_disable_kv_cache", (False,), "there is no KV cache"),
    ("enable_mis", (False,), "multi-item scoring has masks of its own"),
    ("dllm_algorithm", (None,), "diffusion models aren't supported"),
    ("kt_weight_path", (None,), "KTransformers' weights aren't supported"),
    ("enable_paged_experts", (False,), "paged experts aren't supported"),
    ("model_config_parser", ("auto", "hf"), "only configurations in Hugging Face's format are supported"),
    ("decrypted_config_file", (None, ""), "a configuration beside the model's own isn't supported"),
    ("quantization_param_path", (None,), "scales of the KV cache aren't supported yet"),
    ("modelopt_quant", (None,), "quantised weights aren't supported yet"),
    ("quantize_and_serve", (False,), "quantised weights aren't supported yet"),
    ("rl_quant_profile", (None,), "quantised weights aren't supported yet"),
    ("weight_cache_mode", ("off",), "weights shared by a daemon can't be told from others"),
    ("startup_weight_load_mode", ("serial",), "weights that are loaded later can't be told from others"),
    ("checkpoint_engine_wait_weights_before_ready", (False,), "weights that come later can't be told from others"),
    ("delete_ckpt_after_loading", (False,), "weight files that are deleted have no digest"),
    ("kv_cache_dtype", ("auto", "bf16", "bfloat16"), "a KV cache of this type isn't supported yet"),
    ("kv_canary", ("none",), "SGLang's canary writes into the KV cache"),
    ("forward_hooks", (None, []), "hooks in the model may change what it computes"),
    ("debug_tensor_dump_input_file", (None,), "the model's input is replaced by a file"),
    ("disable_radix_cache", (False,), "SGLang's own prefix cache is disabled, and kvlingua loads through it"),
)

# The same with adapters of LoRA enabled.
_REQUIRED_FOR_LORA: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("lora_backend", ("torch_native",), "of the kernels for LoRA only those that run on a CPU are supported"),
    ("enable_lora_overlap_loading", (None, False), "adapters that are loaded beside the forward aren't supported"),
)
# Attention over all tokens, on a CPU.
_ATTENTION = ("TorchNativeAttnBackend", "IntelAMXAttnBackend")


def describe(context: Any, own: Sequence[str] = ()) -> ModelDescription:
    """The model of a TreeCacheBuildContext. own: arguments that chose kvlingua itself, which may have any value.

    Raises UnsupportedError for what isn't proved to fit.
    """
    from sglang.srt.arg_groups.overrides import resolution_result

    _check_version()
    arguments = context.server_args
    check_arguments(arguments, own)
    model, runner = context.model_config, context.tp_worker.model_runner
    for name, wrong, reason in (
        ("disable_radix_cache", context.params.disable, "SGLang's own prefix cache is disabled"),
        ("sliding_window", context.is_hybrid_swa, "of layers with a sliding window SGLang keeps the last window only"),
        ("hybrid", context.is_hybrid_ssm, "hybrid models with recurrent state aren't supported yet"),
        ("mla", context.is_dsa or model.attention_arch.name != "MHA", "SGLang's latent attention was never run"),
        ("speculative", context.params.is_eagle, "speculative decoding isn't supported yet"),
        ("pooling", not model.is_generation, "embedding and pooling models aren't supported"),
        ("encoder_decoder", model.is_encoder_decoder, "encoder-decoder models aren't supported"),
        ("multimodal", model.is_multimodal, "multimodal models aren't supported yet"),
        ("merged_adapter", _merged(model), "a checkpoint that is merged while loading isn't supported"),
        ("model_code", not is_own(runner.model), f"{type(runner.model).__name__} isn't SGLang's own implementation"),
        ("attention", _attention(runner) not in _ATTENTION, f"{_attention(runner)} isn't known to be full attention"),
    ):
        if wrong:
            raise UnsupportedError(name, reason)
    # Kinds of rope whose rotations depend on the context (longrope, dynamic NTK) are refused by describe_model.
    description = describe_model(
        model.model_path,
        overrides=json.loads(resolution_result(arguments, "json_model_override_args", None) or "{}"),
        compute_dtype=_name(model.dtype),
        kv_dtype=_name(context.params.token_to_kv_pool_allocator.get_kvcache().dtype),
        load_format=str(resolution_result(arguments, "load_format", None)),
        quantization=model.quantization,
        revision=model.revision,
    )
    check_context(description, model.context_len)
    return description


def check_context(description: ModelDescription, tokens: int) -> None:
    """Raise UnsupportedError if this SGLang rotates some of so many positions otherwise than other engines do.

    It makes its table of rotations as long as the context, which may be longer than the model's own: by config.json, or
    by --context-length with SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN.
    """
    state = description.rope
    kind, factor = state["type"], state.get("factor")
    if kind not in UNSCALED_BEYOND:
        return
    config = {**description.config, **description.overrides}
    own = state["original_max_position_embeddings"] if kind == "yarn" else config.get("max_position_embeddings")
    if not isinstance(own, (int, float)) or not isinstance(factor, (int, float)) or tokens > own * factor:
        raise UnsupportedError(
            "rope", f"a context of {tokens} tokens is longer than what rope type {kind!r} scales, {own} x {factor}"
        )


def check_arguments(arguments: Any, own: Sequence[str] = ()) -> None:
    """Raise UnsupportedError if SGLang's resolved ServerArgs, but for `own`, ask for what isn't understood here."""
    from sglang.srt.arg_groups.overrides import resolution_result

    if resolution_result(arguments, "tp_size", 1) > 1 and not ALL_WAS_RUN:
        raise UnsupportedError("tp_size", f"several ranks were never run with SGLang {VERSION}: use 0.5.22 or later")
    required = _REQUIRED
    if resolution_result(arguments, "enable_lora", None):
        if not ALL_WAS_RUN:
            raise UnsupportedError("enable_lora", f"LoRA was never run with SGLang {VERSION}: use 0.5.22 or later")
        required += _REQUIRED_FOR_LORA
    for name, allowed, reason in required:
        if name in ABSENT or name in own:
            continue
        value = resolution_result(arguments, name, None)
        if not any(value == one for one in allowed):
            raise UnsupportedError(name, f"{reason} (--{name.replace('_', '-')} is {_short(value)})")
    model, place = (resolution_result(arguments, name, None) for name in ("model_path", "download_dir"))
    # SGLang looks there before it looks in the hub's own cache. ModelScope's ids are folders by now.
    if place is not None and not Path(model).is_dir():
        raise UnsupportedError(
            "download_dir",
            f"the weights of {model} may come from {place} instead of the hub's cache: give the folder as --model-path",
        )


def _check_version() -> None:
    import sglang

    if not SGLANG.supports(sglang.__version__):
        raise UnsupportedError("version", SGLANG.refusal(sglang.__version__))


def _merged(model: Any) -> bool:
    return "pointer_head" not in ABSENT and model.pointer_head is not None


def is_own(model: object) -> bool:
    """Whether SGLang computes with an implementation of its own, not with that of transformers."""
    module = type(model).__module__
    return module.startswith("sglang.srt.models.") and module != "sglang.srt.models.transformers"


def _attention(runner: Any) -> str:
    return type(runner.attn_backend).__name__


def _name(dtype: object) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
