"""SGLang's LoRA adapters: known there by an id that differs from engine to engine, here by what they do to the KV."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kvlingua.adapters.sglang.hooks import install
from kvlingua.common import log
from kvlingua.common.errors import KVLinguaError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.lora import AdapterDigests, Loaded
from kvlingua.common.identity.lora_folder import WEIGHTS

_LOAD = "sglang.srt.lora.lora_manager.LoRAManager.load_lora_adapter"
# The module of SGLang's in which each of the checkpoint's is, and those without which SGLang doesn't use its matrices.
_MODULES = {
    "q_proj": ("qkv_proj", ("v_proj",)),
    "k_proj": ("qkv_proj", ("q_proj", "v_proj")),
    "v_proj": ("qkv_proj", ("q_proj",)),
    "o_proj": ("o_proj", ()),
    "gate_proj": ("gate_up_proj", ()),
    "up_proj": ("gate_up_proj", ("gate_proj",)),
    "down_proj": ("down_proj", ()),
}


class Adapters:
    """Those of SGLang's LoRAManager, which come and go while the engine runs."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._wrapped = {name for layer in manager.lora_modules for name in layer}
        self._digests = AdapterDigests(self._check)
        self._loaded: dict[str, int] = {}  # when each was, in ns, of those that came after the start

    @classmethod
    def of(cls, context: Any, guard: Guard) -> Adapters | None:
        """Of SGLang's TreeCacheBuildContext; None without LoRA. What is loaded by now is hashed from now on, others are
        from when they are loaded.

        Raises UnsupportedError if it can't be seen when others are loaded.
        """
        manager = getattr(context.tp_worker.model_runner, "lora_manager", None)
        if manager is None:
            return None
        found = cls(manager)

        def note(manager: Any, lora_ref: Any) -> None:
            guard.run("adapter", None, found._note, lora_ref)

        install({_LOAD: note}, "BEFORE")
        for adapter in list(manager.lora_refs):
            found.digest(adapter)
        return found

    def digest(self, adapter: str) -> str | KVLinguaError | None:
        """The digest of the adapter with that id; None as long as it isn't known; or why there is none."""
        found = self._of_folder(adapter)
        if isinstance(found, KVLinguaError):
            message = f"sglang: a LoRA adapter's requests pass through: {found}"
            log.once(f"sglang adapter {adapter}", logging.WARNING, message)
        return found

    def _of_folder(self, adapter: str) -> str | KVLinguaError | None:
        config = self._manager.configs.get(adapter)
        if config is None or adapter not in self._manager.lora_refs:
            return UnsupportedError("lora", f"SGLang has no adapter {adapter} any more")
        if config.path is None:
            return UnsupportedError("lora", "an adapter that was given as tensors has no files: load it from a folder")
        return self._digests.get(str(config.path), self._loaded.get(adapter))

    def _note(self, ref: Any) -> None:
        """SGLang is about to load the adapter of this LoRARef."""
        now = self._loaded[ref.lora_id] = time.time_ns()
        self._digests.get(str(ref.lora_path), now)

    def _check(self, loaded: Loaded, matrices: Sequence[str]) -> None:
        check_alone(Path(loaded.folder), loaded.since_ns)
        check_used({matrix.rpartition(".")[0] for matrix in matrices}, self._wrapped)


def check_used(modules: Collection[str], wrapped: Collection[str]) -> None:
    """Raise UnsupportedError unless SGLang computes all these modules with the matrices that an adapter has for them.

    wrapped: the names of those of its own modules that compute with adapters' matrices.
    """
    for module in sorted(modules):
        before, _, name = module.rpartition(".")
        own, needed = _MODULES.get(name, (name, ()))
        if name not in _MODULES or f"{before}.{own}" not in wrapped:
            raise UnsupportedError("lora", f"this SGLang computes {module} without the adapter's matrices")
        for each in needed:
            if f"{before}.{each}" not in modules:
                raise UnsupportedError("lora", f"SGLang uses matrices of {module} beside those of {each} only")


def check_alone(folder: Path, since_ns: int | None) -> None:
    """SGLang reads every safetensors file of a folder. Raise UnsupportedError if since then there was another one."""
    try:
        names, changed_ns = sorted(path.name for path in folder.iterdir()), folder.stat().st_mtime_ns
    except OSError as error:
        raise UnsupportedError("lora", f"{folder} can't be read: {error.strerror}") from None
    for name in names:
        if ".safetensors" in name and name != WEIGHTS:
            raise UnsupportedError("lora", f"SGLang reads {name} in {folder}, too: leave only {WEIGHTS} there")
    if since_ns is None or changed_ns > since_ns:
        raise UnsupportedError("lora", f"files came into {folder} or went from it after SGLang may have read it")
