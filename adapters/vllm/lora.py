"""Which LoRA adapter a request runs with, as a digest of what that does to the KV."""

import logging
from collections.abc import Iterator
from typing import Any

from kvlingua.adapters.vllm.versions import dtype_name
from kvlingua.common import log
from kvlingua.common.errors import KVLinguaError
from kvlingua.common.identity.lora import AdapterDigests
from kvlingua.common.metrics import refused


class Adapters:
    """Of one engine. vLLM knows an adapter by its number, and its prefix cache by its name: an adapter whose number or
    name was another folder's, or is loaded anew in its place, has no digest from then on, nor has the other one.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.enabled = vllm_config.lora_config is not None
        self._digests = AdapterDigests()
        self._why_not = next(_refusals(vllm_config), None)
        self._folders: dict[object, str] = {}  # by number and by name
        self._mixed: set[str] = set()  # folders

    def note(self, asked: Any) -> None:
        """A request came with this LoRARequest: vLLM has, or will have, that folder's adapter under its number and its
        name."""
        folder = asked.lora_path
        known = {self._folders.setdefault(key, folder) for key in (asked.lora_int_id, asked.lora_name)} | {folder}
        if len(known) > 1 or asked.load_inplace or getattr(asked, "tensorizer_config_dict", None):
            self._mixed |= known

    def digest(self, asked: Any) -> str | None:
        """Of the adapter that a LoRARequest names, which was noted; None while it isn't known, or where there is
        none."""
        folder = asked.lora_path
        if self._why_not is not None:
            self._refuse("", self._why_not)
            return None
        if folder in self._mixed:
            self._refuse(folder, f"{folder} shares a name or number with another adapter, or is loaded in place")
            return None
        found = self._digests.get(folder)
        if isinstance(found, KVLinguaError):
            self._refuse(folder, str(found))
            return None
        return found

    def _refuse(self, key: str, message: str) -> None:
        if log.once(f"vllm adapter {key}", logging.WARNING, f"vllm: a LoRA adapter's requests pass through: {message}"):
            refused("vllm", "lora")


def _refusals(config: Any) -> Iterator[str]:
    """What in these settings may make more or less of an adapter than its files say."""
    lora = config.lora_config
    if lora is None:
        return
    if dtype_name(lora.lora_dtype) not in ("auto", dtype_name(config.model_config.dtype)):
        yield f"lora_dtype {lora.lora_dtype} isn't the model's: start without it"
    names = ("target_modules", "default_mm_loras", "enable_mixed_moe_lora_format", "enable_moe_shared_loras")
    for name in names:
        if getattr(lora, name, None):
            yield f"{name} is set, which isn't proved to leave adapters as they are: start without it"
