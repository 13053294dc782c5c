"""From vLLM's configuration to what identifies its KV; or the reason why this engine can't take part.

What isn't proved to be right is refused here, before the first request: the engine then runs on without cache.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.identity.ranks import Split
from kvlingua.common.supported import VLLM
from kvlingua.layouts.geometry import Geometry

WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


def describe(config: Any, kv_cache_config: Any, version: str, layers_per_shard: int | None = None) -> ModelDescription:
    """The model that a VllmConfig and its KVCacheConfig say is being run. Raises UnsupportedError."""
    for reason, message in refusals(config, kv_cache_config, version):
        raise UnsupportedError(reason, message)
    model = config.model_config
    dtype = dtype_name(model.dtype)
    description = describe_model(
        model.model,
        overrides=overrides_of(model),
        compute_dtype=dtype,
        kv_dtype=kv_dtype(config.cache_config.cache_dtype, dtype),
        load_format=str(getattr(config.load_config.load_format, "value", config.load_config.load_format)),
        quantization=model.quantization,
        revision=model.revision,
    )
    check_ranks(description.geometry, config.parallel_config.tensor_parallel_size, layers_per_shard)
    check_cache(
        description, kv_cache_config, config.cache_config.block_size, config.parallel_config.tensor_parallel_size
    )
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
    if model.runner_type != "generate":
        yield "pooling", f"models that don't generate (runner {model.runner_type}) have no use for stored KV"
    if model.is_encoder_decoder or model.is_attention_free or model.is_diffusion:
        yield "architecture", "only decoder models with attention are supported"
    if model.use_mla:
        yield "mla", "multi-head latent attention (MLA) isn't supported yet"
    if model.is_hybrid or kv_cache_config.has_mamba_layers:
        yield "hybrid", "models with recurrent layers (Mamba, linear attention) aren't supported yet"
    if len(kv_cache_config.kv_cache_groups) != 1:
        yield (
            "hybrid",
            f"{len(kv_cache_config.kv_cache_groups)} KV cache groups (sliding window, hybrid) aren't supported yet",
        )
    if cache.cache_dtype != "auto" and cache.cache_dtype != dtype_name(model.dtype):
        yield "kv_dtype", f"kv_cache_dtype {cache.cache_dtype} isn't supported yet: use auto"
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
        "engram_config": config.engram_config,
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


def dtype_name(dtype: Any) -> str:
    """`torch.float32` -> `float32`."""
    return str(dtype).removeprefix("torch.")


def kv_dtype(cache_dtype: str, compute_dtype: str) -> str:
    return compute_dtype if cache_dtype == "auto" else cache_dtype


def check_ranks(geometry: Geometry, ranks: int, layers_per_shard: int | None) -> None:
    """Raise UnsupportedError, with the arithmetic, unless each of the tensor-parallel ranks holds whole shards."""
    grid = ShardGrid.of(geometry, layers_per_shard)
    for extent in Split.of(geometry.kv_heads, geometry.layers, ranks).extents():
        grid.check_writer(extent)


def check_cache(description: ModelDescription, kv_cache_config: Any, block_size: int, ranks: int = 1) -> None:
    """Raise UnsupportedError unless vLLM's plan of its KV cache holds this model's layers, all of them, in one group,
    and of its heads what each of `ranks` holds."""
    geometry = description.geometry
    (group,) = kv_cache_config.kv_cache_groups
    spec = group.kv_cache_spec
    name = type(spec).__name__
    if (
        name != "FullAttentionSpec"
        or spec.sliding_window is not None
        or spec.attention_chunk_size is not None
        or spec.non_causal
    ):
        raise UnsupportedError(
            "attention", f"a KV cache of {name} isn't plain full attention, which is all that is supported yet"
        )
    k, v = geometry.planes
    expected = {
        "layers": geometry.layers,
        "kv heads": max(1, geometry.kv_heads // ranks),
        "K width": k.width,
        "V width": v.width,
        "dtype": geometry.dtype,
        "block size": block_size,
        "padding": None,
        "head slots": None,
        "tokens per state": 1,
    }
    found = {
        "layers": len(group.layer_names),
        "kv heads": spec.num_kv_heads,
        "K width": spec.head_size,
        "V width": spec.head_size_v,
        "dtype": dtype_name(spec.dtype),
        "block size": spec.block_size,
        "padding": spec.page_size_padded,
        "head slots": spec.num_head_slots,
        "tokens per state": spec.tokens_per_state,
    }
    for what, value in expected.items():
        if found[what] != value:
            raise UnsupportedError(
                "cache_shape", f"vLLM's KV cache has {what} {found[what]}, expected {value} from the model's files"
            )
