"""From vLLM's configuration to what identifies its KV; or the reason why this engine can't take part.

What isn't proved to be right is refused here, before the first request: the engine then runs on without cache.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvlingua.adapters.vllm.cache_plan import check_plan, windows_of
from kvlingua.adapters.vllm.versions import dtype_name, was_run
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.identity.ranks import Split
from kvlingua.common.supported import VLLM
from kvlingua.layouts.geometry import Geometry

# What kv_cache_dtype may name, and the numbers that vLLM's kernels for CPUs then keep.
FP8 = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


def describe(config: Any, kv_cache_config: Any, version: str, layers_per_shard: int | None = None) -> ModelDescription:
    """The model that a VllmConfig and its KVCacheConfig say is being run. Raises UnsupportedError."""
    for reason, message in refusals(config, kv_cache_config, version):
        raise UnsupportedError(reason, message)
    model = config.model_config
    dtype = dtype_name(model.dtype)
    cached = kv_dtype(config.cache_config.cache_dtype, dtype)
    description = describe_model(
        model.model,
        overrides=overrides_of(model),
        compute_dtype=dtype,
        kv_dtype=cached,
        scales="tensor" if cached.startswith("float8") else None,
        windows=("gemma2",),
        load_format=str(getattr(config.load_config.load_format, "value", config.load_config.load_format)),
        quantization=model.quantization,
        revision=model.revision,
    )
    ranks = config.parallel_config.tensor_parallel_size
    check_ranks(description.geometry, ranks, layers_per_shard)
    check_plan(description, kv_cache_config, config.cache_config.block_size, ranks)
    return description


def refusals(config: Any, kv_cache_config: Any, version: str) -> Iterator[tuple[str, str]]:
    """What in these settings isn't supported: a code and a sentence with what would work, the likeliest cause first."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    if not VLLM.supports(version):
        yield "version", VLLM.refusal(version)
    if config.device_config.device_type != "cpu":
        yield "device", f"device {config.device_config.device_type} isn't supported yet, only cpu"
    sizes = {
        "pipeline_parallel_size": "pipeline parallelism",
        "prefill_context_parallel_size": "context parallelism",
        "decode_context_parallel_size": "context parallelism",
        "data_parallel_size": "data parallelism",
    }
    for name, what in sizes.items():
        if getattr(parallel, name) > 1:
            yield "parallel", f"{what} ({name}={getattr(parallel, name)}) isn't supported yet, tensor parallelism is"
    if any(windows_of(kv_cache_config.kv_cache_groups)) and not was_run("sliding windows", version):
        yield "sliding_window", f"sliding windows were never run with vLLM {version}: use the newest that is supported"
    if model.runner_type != "generate":
        yield "pooling", f"models that don't generate (runner {model.runner_type}) have no use for stored KV"
    if model.is_encoder_decoder or model.is_attention_free or model.is_diffusion:
        yield "architecture", "only decoder models with attention are supported"
    if model.use_mla:  # whether it is computed rightly the worker finds out (latent_proof.py)
        if not was_run("latent attention (MLA)", version):
            yield "mla", f"latent attention (MLA) was never run with vLLM {version}: use the newest that is supported"
        # With fewer bits vLLM chooses experts by other numbers than transformers, and in float16 it scales what its
        # norms are given: other models, not roundings of one.
        if dtype_name(model.dtype) != "float32":
            yield "mla", f"latent attention (MLA) in {dtype_name(model.dtype)} isn't supported yet, only in float32"
        if parallel.tensor_parallel_size > 1:
            yield "parallel", "latent attention (MLA) isn't supported on several ranks yet: use one"
        if config.lora_config is not None:
            yield "lora", "LoRA beside latent attention (MLA) isn't supported yet: start without --enable-lora"
    if model.is_hybrid or kv_cache_config.has_mamba_layers:
        yield "hybrid", "models with recurrent layers (Mamba, linear attention) aren't supported yet"
    cached, computed = kv_dtype(cache.cache_dtype, dtype_name(model.dtype)), dtype_name(model.dtype)
    if cached in FP8.values() and not was_run("KV in fp8", version):
        yield "kv_dtype", f"kv_cache_dtype {cache.cache_dtype} was never run with kvlingua: use auto"
    elif cached in FP8.values() and model.use_mla:
        yield "kv_dtype", f"kv_cache_dtype {cache.cache_dtype} isn't supported yet for latent attention: use auto"
    elif cached not in (computed, *FP8.values()):
        yield "kv_dtype", f"kv_cache_dtype {cache.cache_dtype} isn't supported: use auto"
    if config.speculative_config is not None:
        yield "speculative", "speculative decoding isn't supported yet"
    if model.quantization is not None or config.quant_config is not None:
        yield "quantization", f"quantised weights ({model.quantization}) aren't supported yet"
    yield from _unproved(config)


def _unproved(config: Any) -> Iterator[tuple[str, str]]:
    """Settings that may change what the KV holds, or when, in a way that nobody has proved to be harmless."""
    model, parallel, load = config.model_config, config.parallel_config, config.load_config
    if callable(model.hf_overrides):
        yield "hf_overrides", "hf_overrides given as a function can't be written into a key: give them as a mapping"
    if not Path(model.model).is_dir():  # a hub's id
        if load.download_dir is not None:
            yield "download_dir", "download_dir is set, so that the weights may come from another snapshot: use HF_HOME"
        if modelscope():
            yield "modelscope", "models of ModelScope aren't supported: name a folder"
    if load.ignore_patterns != type(load)().ignore_patterns:
        yield "ignore_patterns", f"ignore_patterns {load.ignore_patterns} may leave weights out: start without it"
    settings = {
        "model_class_overrides": model.model_class_overrides,
        "hf_config_path": model.hf_config_path,
        "model_weights": model.model_weights,
        "model_loader_extra_config": load.model_loader_extra_config,
        "worker_extension_cls": parallel.worker_extension_cls,
        "weight_transfer_config": config.weight_transfer_config,
        "scheduler_cls": config.scheduler_config.scheduler_cls,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "kv_sharing_fast_prefill": config.cache_config.kv_sharing_fast_prefill,
        "engram_config": getattr(config, "engram_config", None),
    }
    for name, value in settings.items():
        if value:
            yield "setting", f"{name} is set, which isn't proved to leave the KV as it is: start without it"
    if config.use_v2_model_runner:
        yield "model_runner", "Model Runner V2 was never run with kvlingua: set VLLM_USE_V2_MODEL_RUNNER=0"
    if parallel.worker_cls != WORKER:
        yield "setting", f"worker_cls {parallel.worker_cls} isn't supported, only vLLM's own for CPUs is"
    if str(model.config_format) not in ("auto", "hf") or str(model.model_impl) not in ("auto", "vllm"):
        yield (
            "setting",
            f"config_format {model.config_format} with model_impl {model.model_impl} isn't supported, auto is",
        )


def modelscope() -> bool:
    """Whether vLLM takes hub ids for ModelScope's."""
    from vllm import envs

    return bool(envs.VLLM_USE_MODELSCOPE)


def check_model_class(model: type) -> None:
    """Raise UnsupportedError unless it is one of vLLM's own: a plug-in may have put another in its place."""
    if not model.__module__.startswith("vllm.model_executor.models."):
        raise UnsupportedError("model_code", f"{model.__module__}.{model.__qualname__} isn't vLLM's own model class")


def overrides_of(model: Any) -> Mapping[str, Any]:
    """What the engine was told to use instead of config.json."""
    return dict(model.hf_overrides or {})


def kv_dtype(cache_dtype: str, compute_dtype: str) -> str:
    """The type of the KV's numbers, as kvlingua calls it."""
    return compute_dtype if cache_dtype == "auto" else FP8.get(cache_dtype, cache_dtype)


def check_ranks(geometry: Geometry, ranks: int, layers_per_shard: int | None) -> None:
    """Raise UnsupportedError, with the arithmetic, unless each of the tensor-parallel ranks holds whole shards."""
    grid = ShardGrid.of(geometry, layers_per_shard)
    for extent in Split.of(geometry.kv_heads, geometry.layers, ranks).extents():
        grid.check_writer(extent)
