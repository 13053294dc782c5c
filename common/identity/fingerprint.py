"""The fingerprint of a model's weights: sha256 over the sorted (name, sha256) of the files they are read from.

A file's digest is kept in a private folder under what the kernel says of the file: device, inode, size, mtime and
ctime. A file that is written has another ctime afterwards, even if its size and mtime were restored. A write through a
memory mapping gives it one only if the page was clean, so a file is synced before it is hashed; and none at all where
files live in memory (tmpfs), so digests of those are not kept. One process hashes at a time; the others wait for it and
find its result.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from kvlingua.common.config import Config
from kvlingua.common.cpu_clock import ClockedThread
from kvlingua.common.errors import KVLinguaError, StoreTimeout, UnsupportedError
from kvlingua.common.file_lock import locked
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.process_start import process_start_ns
from kvlingua.common.identity.unchanged import check_unchanged
from kvlingua.common.regular_file import only_regular

_FILE = "digests.json"
_MAX_BYTES = 4 << 20
_MAX_ENTRIES = 4096
_LOCK_TIMEOUT_S = 600.0  # a holder hashes some 100 GB in that time, or was stopped
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file changed twice within one tick of its file system's clock (2 s at most) keeps its ctime: wait before keeping.
_SETTLED_NS = 3_000_000_000
_IN_MEMORY = {"tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"}  # file systems whose files have no pages to clean


def fingerprint_files(files: Mapping[str, Path], cache_dir: Path) -> str:
    """64 hexadecimal digits for the files by name; each is hashed once per machine and user, as long as it doesn't
    change.

    Raises UnsupportedError for what is no regular file, can't be read or changes meanwhile, and for a cache folder that
    others may write.
    """
    _make_private(cache_dir)
    try:
        with locked(cache_dir / "lock", _LOCK_TIMEOUT_S):
            known = _read(cache_dir)
            digests = {name: _digest(files[name], known) for name in sorted(files)}
            _write(cache_dir, known)
    except StoreTimeout:  # the others' findings are worth no longer wait
        digests = {name: _digest(files[name], {}) for name in sorted(files)}
    except OSError as error:
        raise _unusable(cache_dir, error) from None
    text = canonical_json.encode(sorted(digests.items()), max_bytes=_MAX_BYTES)
    return hashlib.sha256(text).hexdigest()


class FingerprintTask:
    """The fingerprint of a described model, computed by a thread of its own from the first question on.

    tensors_compared: the caller compares the loaded tensors with the files. Otherwise files that changed after this
    process began are refused: the engine may have read them before the change, and which weights it has can't be
    proved.
    """

    def __init__(self, description: ModelDescription, config: Config, *, tensors_compared: bool = False) -> None:
        self._description = description
        self._config = config
        self._tensors_compared = tensors_compared
        self._start = threading.Lock()
        self._process: int | None = None
        self._done = threading.Event()
        self._result: str | None = None
        self._error: KVLinguaError | None = None

    def result(self) -> str | None:
        """The fingerprint; None as long as it isn't known, and for ever if there is an `error`. Doesn't wait."""
        return self.wait(0)

    def wait(self, timeout: float | None) -> str | None:
        """The fingerprint, waited for up to `timeout` seconds (None: until it is known or can't be)."""
        with self._start:
            if self._process != os.getpid():  # a thread doesn't survive a fork
                self._process = os.getpid()
                if not self._done.is_set():
                    self._done = threading.Event()
                    ClockedThread(self._run, "kvlingua-fingerprint").start()
        self._done.wait(timeout)
        return self._result

    @property
    def error(self) -> KVLinguaError | None:
        """Why there is no fingerprint and won't be one."""
        return self._error

    def _run(self) -> None:
        try:
            if not self._tensors_compared:
                check_unchanged(self._description, process_start_ns())
            fingerprint = fingerprint_files(self._description.weight_files, self._config.fingerprint_dir)
            if not self._tensors_compared:
                check_unchanged(self._description, process_start_ns())
            self._result = fingerprint
        except KVLinguaError as error:
            self._error = error
        finally:
            if self._result is None and self._error is None:
                self._error = UnsupportedError("fingerprint", "the weight files could not be hashed")
            self._done.set()


def _digest(path: Path, known: dict[str, str]) -> str:
    """sha256 of a file, from `known` or added to it."""
    try:
        with open(path, "rb", opener=only_regular) as file:
            key = _key(os.fstat(file.fileno()))
            if key in known:
                return known[key]
            os.fdatasync(file.fileno())  # from here on a write through a mapping changes the ctime, too
            before = os.fstat(file.fileno())
            key = _key(before)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after, there = os.fstat(file.fileno()), os.stat(path)
    except OSError as error:
        raise UnsupportedError("fingerprint", f"{path} can't be read: {error.strerror}") from None
    if not key == _key(after) == _key(there):
        raise UnsupportedError("weights_changed", f"{path} changed while it was read: restart the engine")
    if time.time_ns() - before.st_ctime_ns > _SETTLED_NS and not _in_memory(before.st_dev):
        known[key] = digest
    return digest


def _in_memory(device: int) -> bool:
    """Whether files of this device have no other place than memory, or it can't be known."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return True
    number = f"{os.major(device)}:{os.minor(device)}"
    fields = (mount.partition(" - ") for mount in mounts)
    return any(place.split()[2] == number and rest.split()[0] in _IN_MEMORY for place, _, rest in fields)


def _key(facts: os.stat_result) -> str:
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"


def _make_private(folder: Path) -> None:
    """Make the folder if it isn't there. Raises UnsupportedError if others may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise _unusable(folder, error) from None
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise UnsupportedError("fingerprint", f"{folder} may be written by others: chmod 700, or set fingerprint_dir")


def _unusable(folder: Path, error: OSError) -> UnsupportedError:
    return UnsupportedError("fingerprint", f"{folder} can't be used: {error.strerror}; set fingerprint_dir")


def _read(folder: Path) -> dict[str, str]:
    """The digests kept so far; a file that can't be read or understood counts as empty."""
    try:
        with open(folder / _FILE, "rb") as file:
            values = canonical_json.decode(file.read(_MAX_BYTES + 1), max_bytes=_MAX_BYTES)
    except (OSError, ValueError):
        return {}
    entries = values.items() if isinstance(values, dict) else ()
    return {key: value for key, value in entries if isinstance(value, str) and _SHA256.fullmatch(value)}


def _write(folder: Path, known: Mapping[str, str]) -> None:
    newest = dict(list(known.items())[-_MAX_ENTRIES:])
    temporary = folder / f"{_FILE}.{os.getpid()}"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(newest, file, indent=0)
        temporary.rename(folder / _FILE)
    except OSError:  # a full disk: what isn't kept is hashed again next time
        temporary.unlink(missing_ok=True)
