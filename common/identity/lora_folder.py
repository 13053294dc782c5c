"""A LoRA adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors.

Only plain adapters are read: of those with anything more (DoRA, ranks or strengths of their own per module, trained
biases, whole modules, ...) engines don't all compute the same, or don't compute all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.lora_digest import ELEMENT_BYTES, Matrix, digest_of
from kvlingua.common.regular_file import only_regular

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the name that a module has in the model."""
_MATRIX = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<which>lora_[AB])\.weight")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20
_MAX_MATRIX_BYTES = 1 << 31
# Fields of adapter_config.json that are read here, or can't change what a saved adapter computes.
_READ = frozenset({"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"})
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)


def adapter_digest(folder: str | Path, fits: Callable[[Sequence[str]], None] | None = None) -> str:
    """`digest_of` the adapter that PEFT has saved in a folder. Reads all of it.

    fits: given the matrices' names, raises UnsupportedError if the engine doesn't use these.

    Raises UnsupportedError for an adapter that isn't a plain LoRA, or whose files can't be read or used.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        with open(path, "rb", opener=only_regular) as file:
            matrices = _read_matrices(file, config)
    except OSError as error:
        raise _refusal(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise _refusal(f"{path} can't be used: {error}") from None
    if fits is not None:
        fits([matrix.name for matrix in matrices])
    return digest_of(config["lora_alpha"] / config["r"], matrices)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=only_regular) as file:
            config = canonical_json.decode(file.read(_MAX_CONFIG_BYTES + 1), max_bytes=_MAX_CONFIG_BYTES)
    except OSError as error:
        raise _refusal(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise _refusal(f"{path} can't be used: {error}") from None
    if not isinstance(config, dict):
        raise _refusal(f"{path} is not a JSON object")
    check_plain(config)
    return config


def check_plain(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError unless an adapter_config.json describes a plain LoRA."""
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise _refusal(f"an adapter of type {config.get('peft_type')} with bias {config.get('bias')!r}: only LoRA is")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise _refusal(f"init_lora_weights {config['init_lora_weights']!r} changes the base model, too")
    for key, value in config.items():
        if key not in _READ | _HARMLESS and value:
            raise _refusal(f"an adapter with {key} isn't a plain LoRA, which is all that is supported")
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or rank <= 0 or type(alpha) not in (int, float):
        raise _refusal(f"r {rank!r} and lora_alpha {alpha!r} are no rank and no number")
    named = isinstance(modules, list) and all(isinstance(name, str) for name in modules)
    if not named and not isinstance(modules, str):
        raise _refusal(f"target_modules are names, or a pattern, not {str(modules)[:80]!r}")


def _read_matrices(file: IO[bytes], config: Mapping[str, Any]) -> list[Matrix]:
    """All tensors of a safetensors file. Raises ValueError for what isn't one, and for any that isn't of a LoRA."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"not a safetensors file: a header of {length} bytes in {size}")
    header = canonical_json.decode(file.read(length), max_bytes=_MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    matrices, start = [], 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        begin, end = _offsets(entry)
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if dtype not in ELEMENT_BYTES or not isinstance(shape, list) or len(shape) != 2:
            raise ValueError(f"{name} is a {dtype} of shape {shape}: expected a matrix of {', '.join(ELEMENT_BYTES)}")
        if not all(type(each) is int and 0 < each <= 1 << 24 for each in shape):
            raise ValueError(f"{name} has the shape {shape}")
        nbytes = shape[0] * shape[1] * ELEMENT_BYTES[dtype]
        if begin != start or end - begin != nbytes or 8 + length + end > size or nbytes > _MAX_MATRIX_BYTES:
            raise ValueError(f"{name} lies at bytes {begin} to {end}, expected {nbytes} from {start} on")
        start = end
        matrices.append(Matrix(_plain_name(name, shape, config), dtype, (shape[0], shape[1]), file.read(nbytes)))
    if 8 + length + start != size or not matrices:
        raise ValueError(f"{size} bytes hold {len(matrices)} tensors of {start} bytes")
    return matrices


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(each) is not int for each in offsets):
        raise ValueError("a tensor without data_offsets")
    return offsets[0], offsets[1]


def _plain_name(name: str, shape: list[int], config: Mapping[str, Any]) -> str:
    """The name that a matrix has in the model, if it is of the rank and for a module that the configuration says."""
    found = _MATRIX.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no matrix of a LoRA: expected {PREFIX}MODULE.lora_A.weight or lora_B")
    module, which, modules = found["module"], found["which"], config["target_modules"]
    if isinstance(modules, str):
        targeted = re.fullmatch(modules, module) is not None
    else:
        targeted = any(module == each or module.endswith(f".{each}") for each in modules)
    if not targeted:
        raise ValueError(f"{name} is for none of the target_modules, so not every engine uses it")
    if shape[which == "lora_B"] != config["r"]:
        raise ValueError(f"{name} has the shape {shape}, which doesn't fit r = {config['r']}")
    return f"{module}.{which}"


def _refusal(message: str) -> UnsupportedError:
    return UnsupportedError("lora", message)
