"""LoRA adapters that engines load from folders: which digest, and the namespace of a model with one on it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from kvlingua.common import log
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.deadline import DeadlineWorker
from kvlingua.common.errors import KVLinguaError, StoreTimeout, UnsupportedError
from kvlingua.common.identity.lora_folder import CONFIG, WEIGHTS, adapter_digest
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.identity.process_start import process_start_ns
from kvlingua.common.identity.unchanged import BEGAN, check_paths

MARGIN_NS = 50_000_000
"""So long before an engine began to read an adapter its files must have been complete: more than a file's times are
behind the clock (a tick), and more than `check_paths` tolerates."""

CHECK_S = 0.5


@lru_cache(maxsize=64)
def with_adapter(namespace: Namespace, digest: str) -> Namespace:
    """The namespace of the same model with the adapter of this digest on it."""
    return replace(namespace, lora=digest)


@dataclass(frozen=True)
class Loaded:
    """What an engine has read of a folder, at `loaded_ns`; None: at any time since this process began."""

    folder: str
    loaded_ns: int | None

    @property
    def since_ns(self) -> int | None:
        """What changed after it may be other than what was read; None where that can't be known."""
        return process_start_ns() if self.loaded_ns is None else self.loaded_ns - MARGIN_NS

    def check(self) -> None:
        """Raise UnsupportedError unless the adapter's files are still what was read."""
        folder = Path(self.folder)
        if not folder.is_dir():
            raise UnsupportedError(
                "lora", f"{folder} isn't a folder: adapters of a hub must be given by their local folder"
            )
        event = BEGAN if self.loaded_ns is None else "it was loaded, or right before: load the adapter anew"
        check_paths([folder / CONFIG, folder / WEIGHTS], self.since_ns, event)


Fits: TypeAlias = Callable[[Loaded, Sequence[str]], None]
"""Given what was read and the matrices' names, raises UnsupportedError if the engine doesn't use just these."""


class AdapterDigests:
    """The digests of adapters in folders, computed by threads from the first question on, one after the other.

    Files that changed after the engine began to read them are refused: it may have read them before the change, and
    which weights it has can't be proved. fits: what the engine asks of an adapter besides. May be used from any thread.
    """

    def __init__(self, fits: Fits | None = None) -> None:
        self._fits = fits
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # an adapter is in memory as a whole while it is hashed
        self._found: dict[Loaded, str | KVLinguaError | None] = {}
        self._checks = DeadlineWorker("kvlingua-adapter-check", {})

    def get(self, folder: str, loaded_ns: int | None = None) -> str | KVLinguaError | None:
        """The digest; None as long as it isn't known; or why there is none, for good. Waits for its file system for
        CHECK_S at most.

        loaded_ns: the wall-clock time at which the engine began to read the folder, the one time that it does; None:
        this process may have read it at any time.
        """
        loaded = Loaded(folder, loaded_ns)
        with self._lock:
            if loaded not in self._found:
                ClockedThread(lambda: self._run(loaded), "kvlingua-adapter").start()
                self._found.setdefault(loaded, None)
            found = self._found[loaded]
        if isinstance(found, str):
            try:
                self._checks.call("adapter's check", loaded.check, CHECK_S)
            except StoreTimeout:
                return None
            except KVLinguaError as error:
                found = self._found[loaded] = error
        return found

    def _run(self, loaded: Loaded) -> None:
        folder = loaded.folder
        found: str | KVLinguaError = UnsupportedError("lora", f"the adapter in {folder} could not be hashed")
        try:
            with self._reading:
                loaded.check()
                found = adapter_digest(folder, None if self._fits is None else partial(self._fits, loaded))
            log.logger.info("the LoRA adapter in %s is known: digest %s", folder, found[:12])
        except KVLinguaError as error:
            found = error
        finally:
            self._found[loaded] = found
