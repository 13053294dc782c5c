"""From a live model to its namespace: the folder it was loaded from, what differs from it, and the fingerprint of its
weights."""

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from kvlingua.adapters.hf.live_state import GENERATION_METHODS, base_tensors, check_known_code, foreign_origin
from kvlingua.adapters.hf.weights import differing_attributes, differing_tensor, expected_model, memory_fingerprint
from kvlingua.common.config import Config
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.fingerprint import FingerprintTask
from kvlingua.common.identity.model import IGNORED_FIELDS, ModelDescription, describe_model
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.weight_files import IN_MEMORY, model_folder
from kvlingua.common.supported import HF

# Families of which layers with a sliding window were compared with and without a filled cache.
WINDOWED = ("gemma2", "gemma3_text", "gpt_oss", "mistral")

# What a live configuration says about how it was loaded, not about the model.
_LOADING_FIELDS = frozenset({"_name_or_path", "name_or_path", "dtype", "torch_dtype", "transformers_version"})


def identify(model: Any, config: Config) -> Namespace:
    """The namespace of `model` as it is now, but for adapters.

    Reads the weight files, or hashes the weights: seconds per gigabyte.

    Raises UnsupportedError for a model whose KV isn't proved to be a function of namespace and token ids.
    """
    check_model(model)
    dtype = _dtype(model)
    folder = _folder(model.name_or_path)
    with contextlib.ExitStack() as stack:
        if folder is None:  # made in memory: its configuration is all there is to describe
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvlingua-")))
            described = model.config.to_dict() | {"architectures": [type(model).__name__]}
            (folder / "config.json").write_text(json.dumps(described), "utf-8")
            overrides, load_format = {}, IN_MEMORY
        else:
            overrides, load_format = _config_differences(model.config, folder), "auto"
        description = describe_model(
            folder,
            overrides=overrides,
            compute_dtype=dtype,
            kv_dtype=dtype,
            windows=WINDOWED,
            load_format=load_format,
        )
        expected = expected_model(model)
        attributes = {f"module {name}": value for name, value in differing_attributes(model, expected).items()}
        description = replace(description, overrides={**description.overrides, **attributes})
        fingerprint = _fingerprint(model, expected, description, config)
    return description.namespace(
        fingerprint, chunk_tokens=config.chunk_tokens, layers_per_shard=config.layers_per_shard
    )


def check_model(model: Any) -> None:
    """Raise UnsupportedError for a kind of model whose `generate` isn't known to be transformers' usual one."""
    if not HF.supports(transformers.__version__):
        raise UnsupportedError("version", HF.refusal(transformers.__version__))
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise UnsupportedError("model", f"{type(model).__name__} is not a transformers model that generates text")
    if model.config.is_encoder_decoder:
        raise UnsupportedError("encoder_decoder", "encoder-decoder models are not supported")
    for name in GENERATION_METHODS:
        method = getattr(type(model), name)
        if method is not getattr(GenerationMixin, name) or foreign_origin(method) is not None:
            raise UnsupportedError("generate_replaced", f"{type(model).__name__} has a {name} of its own")
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedError("quantized", "quantised weights are not supported")
    check_known_code(model)


def _dtype(model: torch.nn.Module) -> str:
    weights = (tensor for _, tensor in base_tensors(model) if isinstance(tensor, torch.nn.Parameter))
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in weights}
    if len(dtypes) != 1:
        raise UnsupportedError(
            "mixed_dtype", f"the model's parameters are of {', '.join(sorted(dtypes))}: load it in one dtype"
        )
    return dtypes.pop()


def _folder(name_or_path: str) -> Path | None:
    """The folder a model was loaded from, or None. Which revision of a hub's model it was isn't known for sure; if it
    is another than the one found here, the weights differ from the files, and that is seen.
    """
    try:
        return model_folder(name_or_path) if name_or_path else None
    except UnsupportedError:
        return None


def _config_differences(live: PreTrainedConfig, folder: Path) -> dict[str, Any]:
    """Fields in which the live configuration isn't what its class reads from the folder, as the live one has them."""
    here, there = live.to_dict(), type(live).from_pretrained(folder, local_files_only=True).to_dict()
    fields = (here.keys() | there.keys()) - _LOADING_FIELDS - IGNORED_FIELDS
    return {field: here.get(field) for field in sorted(fields) if here.get(field) != there.get(field)}


def _fingerprint(
    model: torch.nn.Module, expected: torch.nn.Module, description: ModelDescription, config: Config
) -> str:
    before = _stats(description)
    if not description.weight_files or differing_tensor(model, expected, description.weight_files) is not None:
        return memory_fingerprint(model)
    task = FingerprintTask(description, config, tensors_compared=True)
    fingerprint = task.wait(None)
    if fingerprint is None:
        raise UnsupportedError("fingerprint", f"the weight files can't be hashed: {task.error}")
    if _stats(description) != before:
        raise UnsupportedError("weights_changed", "the weight files changed while they were compared and hashed")
    return fingerprint


def _stats(description: ModelDescription) -> list[tuple[int, ...]]:
    facts = [path.stat() for path in description.weight_files.values()]
    return [(fact.st_dev, fact.st_ino, fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns) for fact in facts]
