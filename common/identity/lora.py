"""What a LoRA adapter does to a model's KV, in one digest: of its weights, where they act, and how strongly.

Only plain adapters have one: of those with anything more (DoRA, ranks or strengths of their own per module, trained
biases, whole modules, ...) engines don't all compute the same, or don't compute all.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvlingua.common import log
from kvlingua.common.config import Config
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.errors import KVLinguaError, UnsupportedError
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.fingerprint import fingerprint_files
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.process_start import process_start_ns
from kvlingua.common.identity.unchanged import check_paths
from kvlingua.common.regular_file import only_regular

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_BYTES = 1 << 20
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


def adapter_digest(folder: str | Path, cache_dir: Path, *, scaling: float | None = None) -> str:
    """64 hexadecimal digits for the adapter that PEFT has saved in a folder.

    scaling: what the product of its two matrices is multiplied with, if not as its configuration says. cache_dir: of
    `fingerprint_files`. Raises UnsupportedError for an adapter that isn't a plain LoRA, or whose files can't be read.
    """
    folder = Path(folder)
    config = _read(folder / CONFIG)
    plain = _plain(config)
    value = {
        "weights": fingerprint_files({WEIGHTS: folder / WEIGHTS}, cache_dir),
        "scaling": plain["lora_alpha"] / plain["r"] if scaling is None else float(scaling),
        "target_modules": plain["target_modules"],
    }
    return hashlib.sha256(canonical_json.encode(value, max_bytes=_MAX_BYTES)).hexdigest()


@lru_cache(maxsize=64)
def with_adapter(namespace: Namespace, digest: str) -> Namespace:
    """The namespace of the same model with this adapter on it."""
    return replace(namespace, lora=digest)


class AdapterDigests:
    """The digests of adapters in folders, each computed by a thread of its own from the first question on.

    Files that changed after this process began are refused: the engine may have read them before the change, or read
    them again after it, and which weights it has can't be proved. May be used from any thread.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._found: dict[str, str | KVLinguaError | None] = {}

    def get(self, folder: str) -> str | KVLinguaError | None:
        """The digest; None as long as it isn't known; or why there is none, for good. Doesn't wait."""
        with self._lock:
            if folder not in self._found:
                self._found[folder] = None
                ClockedThread(lambda: self._run(folder), "kvlingua-adapter").start()
            found = self._found[folder]
        if isinstance(found, str):
            try:
                _check(folder)
            except KVLinguaError as error:
                found = self._found[folder] = error
        return found

    def _run(self, folder: str) -> None:
        found: str | KVLinguaError = UnsupportedError("lora", f"the adapter in {folder} could not be hashed")
        try:
            _check(folder)
            found = adapter_digest(folder, self._config.fingerprint_dir)
            log.logger.info("the LoRA adapter in %s is known: digest %s", folder, found[:12])
        except KVLinguaError as error:
            found = error
        finally:
            self._found[folder] = found


def _check(folder: str) -> None:
    if not Path(folder).is_dir():
        raise UnsupportedError(
            "lora", f"{folder} isn't a folder: adapters of a hub must be given by their local folder"
        )
    check_paths([Path(folder) / CONFIG, Path(folder) / WEIGHTS], process_start_ns())


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=only_regular) as file:
            config = canonical_json.decode(file.read(_MAX_BYTES + 1), max_bytes=_MAX_BYTES)
    except OSError as error:
        raise UnsupportedError("lora", f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise UnsupportedError("lora", f"{path} can't be used: {error}") from None
    if not isinstance(config, dict):
        raise UnsupportedError("lora", f"{path} is not a JSON object")
    return config


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """`r`, `lora_alpha` and `target_modules`, if these are all that the adapter is."""
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise UnsupportedError(
            "lora", f"an adapter of type {config.get('peft_type')} with bias {config.get('bias')!r}: only plain LoRA is"
        )
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise UnsupportedError("lora", f"init_lora_weights {config['init_lora_weights']!r} changes the base model, too")
    for key, value in config.items():
        if key not in _READ | _HARMLESS and value:
            raise UnsupportedError("lora", f"an adapter with {key} isn't a plain LoRA, which is all that is supported")
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or rank <= 0 or type(alpha) not in (int, float):
        raise UnsupportedError("lora", f"r {rank!r} and lora_alpha {alpha!r} are no rank and no number")
    if isinstance(modules, list):
        modules = sorted(map(str, modules))
    return {"r": rank, "lora_alpha": alpha, "target_modules": modules}
