"""LoRA adapters that engines load from folders: which digest, and the namespace of a model with one on it."""

import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from kvlingua.common import log
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.deadline import DeadlineWorker
from kvlingua.common.errors import KVLinguaError, StoreTimeout, UnsupportedError
from kvlingua.common.identity.lora_folder import CONFIG, WEIGHTS, adapter_digest
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.process_start import process_start_ns
from kvlingua.common.identity.unchanged import check_paths

CHECK_S = 0.5


@lru_cache(maxsize=64)
def with_adapter(namespace: Namespace, digest: str) -> Namespace:
    """The namespace of the same model with the adapter of this digest on it."""
    return replace(namespace, lora=digest)


class AdapterDigests:
    """The digests of adapters in folders, each computed by a thread of its own from the first question on.

    Files that changed after this process began are refused: the engine may have read them before the change, or read
    them again after it, and which weights it has can't be proved. May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, str | KVLinguaError | None] = {}
        self._checks = DeadlineWorker("kvlingua-adapter-check", {})

    def get(self, folder: str) -> str | KVLinguaError | None:
        """The digest; None as long as it isn't known; or why there is none, for good. Waits for its file system for
        CHECK_S at most."""
        with self._lock:
            if folder not in self._found:
                ClockedThread(lambda: self._run(folder), "kvlingua-adapter").start()
                self._found.setdefault(folder, None)
            found = self._found[folder]
        if isinstance(found, str):
            try:
                self._checks.call("adapter's check", lambda: _check(folder), CHECK_S)
            except StoreTimeout:
                return None
            except KVLinguaError as error:
                found = self._found[folder] = error
        return found

    def _run(self, folder: str) -> None:
        found: str | KVLinguaError = UnsupportedError("lora", f"the adapter in {folder} could not be hashed")
        try:
            _check(folder)
            found = adapter_digest(folder)
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
