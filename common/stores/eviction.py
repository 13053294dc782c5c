"""The cap of a file store, enforced across processes.

`<root>/.usage` holds the number of bytes in the store as 20 digits, and is the lock (flock) under which that number,
and the files it counts, change. A temporary file gets its full size when it is made, so what the folder holds never
exceeds what is counted, and a count of the files under the lock is exact at any time. It is done when a process first
writes, and before evicting.

Evicted is what was used longest ago. The chunks of a chain carry times that fall from head to tail
(`Store.touch_chain`), so the tail goes first. An object that would be the next to go is not taken in.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kvlingua.common.errors import StoreError, StoreFull, StoreTimeout
from kvlingua.common.file_lock import locked
from kvlingua.common.identity.keys import NAMESPACE_FILE
from kvlingua.common.stores import temporary
from kvlingua.common.stores.folder import UNREADABLE, OpenFolders, StoredFile, explain, is_ours

USAGE_FILE = ".usage"
_DIGITS = 20
_LOCK_TIMEOUT_S = 10.0  # longer than any eviction; a holder that was stopped must not stop the others for good
_FUTURE_S = 60.0  # a file dated later than this was dated by a wrong clock: its age is unknown, it goes first


class Account:
    """The bytes of one file store, and who has to go when there is no room."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._thread_lock = threading.Lock()  # flock doesn't tell the threads of a process apart
        self._counted = False

    def reserve(self, folders: OpenFolders, namespace: str, nbytes: int, mtime_ns: int) -> tuple[str, int]:
        """Make room for `nbytes`, and a temporary file of that size: its name and descriptor, open for writing.

        Raises StoreFull if everything that could go is used more recently than `mtime_ns`.
        """
        if nbytes > self._max_bytes:
            raise StoreFull(
                f"an object of {nbytes} bytes never fits into a store of at most {self._max_bytes} (max_bytes)"
            )
        with self._locked(folders) as usage:
            total = self._total(folders, usage)
            if total + nbytes > self._max_bytes:
                total = self._evict(folders, namespace, nbytes, mtime_ns)
                _write_total(usage, total)
                if total + nbytes > self._max_bytes:
                    raise StoreFull(
                        f"the store at {folders.root_path} holds {total} bytes of max_bytes = {self._max_bytes}, "
                        "all used more recently than what should be stored; raise max_bytes"
                    )
            name = temporary.new_name()
            folder = _writable(folders, namespace)
            descriptor = -1
            try:
                _write_total(usage, total + nbytes)  # first: where we are killed, too much is counted, never too little
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o600, dir_fd=folder)
                os.ftruncate(descriptor, nbytes)
            except OSError:
                temporary.forget(name)
                if descriptor >= 0:
                    os.close(descriptor)
                    os.unlink(name, dir_fd=folder)
                _write_total(usage, total)
                raise
            return name, descriptor

    def commit(self, folders: OpenFolders, namespace: str, name: str, final: str, nbytes: int) -> None:
        """Give the temporary file its name, unless somebody else's object has it by now."""
        folder = _writable(folders, namespace)
        with self._locked(folders) as usage:
            if exists(folder, final):
                os.unlink(name, dir_fd=folder)
                _write_total(usage, max(0, self._total(folders, usage) - nbytes))
            else:
                try:
                    os.rename(name, final, src_dir_fd=folder, dst_dir_fd=folder)
                except IsADirectoryError:
                    path = folders.root_path / namespace / final
                    raise StoreError(f"{path} is a folder where an object should be; remove it") from None
        temporary.forget(name)

    def remove(self, folders: OpenFolders, namespace: str, names: list[str]) -> None:
        """Remove files; absent ones are no error."""
        with self._locked(folders) as usage:
            total = self._total(folders, usage)
            folder = folders.namespace(namespace)
            for name in names if folder is not None else []:
                total -= _unlink(folder, name)
                temporary.forget(name)
            _write_total(usage, max(0, total))

    @contextmanager
    def _locked(self, folders: OpenFolders) -> Iterator[int]:
        if not self._thread_lock.acquire(timeout=_LOCK_TIMEOUT_S):
            raise StoreTimeout(f"another thread has been writing to {folders.root_path} for {_LOCK_TIMEOUT_S:g} s")
        try:
            path = folders.root_path / USAGE_FILE
            with locked(path, _LOCK_TIMEOUT_S, folder=folders.root(create=True)) as usage:
                if not is_ours(os.fstat(usage)):
                    raise StoreError(f"{path} is not a private regular file of ours; remove it")
                yield usage
        except OSError as error:
            raise explain(folders.root_path, error) from error
        finally:
            self._thread_lock.release()

    def _total(self, folders: OpenFolders, usage: int) -> int:
        text = os.pread(usage, _DIGITS + 1, 0)
        if self._counted and len(text) == _DIGITS and text.isdigit():
            return int(text)
        total = sum(file.nbytes for file in self._sweep(folders))
        _write_total(usage, total)
        self._counted = True
        return total

    def _sweep(self, folders: OpenFolders) -> list[StoredFile]:
        """All files that count, after the temporary ones of dead writers have gone."""
        now = time.time()
        kept = []
        for namespace in folders.names():
            for file in folders.files(namespace):
                if temporary.is_temporary(file.name) and temporary.is_stale(file.name, file.mtime_ns / 1e9, now):
                    _remove_file(folders, file)
                else:
                    kept.append(file)
        return kept

    def _evict(self, folders: OpenFolders, writing: str, nbytes: int, mtime_ns: int) -> int:
        """Remove what is older than `mtime_ns`, oldest first, until `nbytes` and a little more fit.

        The number of bytes that remain.
        """
        files = self._sweep(folders)
        total = sum(file.nbytes for file in files)
        target = min(self._max_bytes - nbytes, self._max_bytes - self._max_bytes // 20)
        future_ns = time.time_ns() + int(_FUTURE_S * 1e9)
        objects = [file for file in files if not temporary.is_temporary(file.name) and file.name != NAMESPACE_FILE]
        left = {file.namespace: 0 for file in files}
        for file in files:
            left[file.namespace] += file.name != NAMESPACE_FILE
        for file in sorted(objects, key=lambda file: -1 if file.mtime_ns > future_ns else file.mtime_ns):
            if total <= target or mtime_ns <= file.mtime_ns <= future_ns:
                break
            _remove_file(folders, file)
            total -= file.nbytes
            left[file.namespace] -= 1
        for file in files:
            if file.name == NAMESPACE_FILE and left[file.namespace] == 0 and file.namespace != writing:
                _remove_file(folders, file)
                total -= file.nbytes
                folders.remove_namespace(file.namespace)
        return total


def exists(folder: int, name: str) -> bool:
    """Whether a name in an open folder is a regular file of ours."""
    try:
        return is_ours(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENOENT or error.errno in UNREADABLE:
            return False
        raise


def _writable(folders: OpenFolders, namespace: str) -> int:
    folder = folders.namespace(namespace, create=True)
    assert folder is not None  # it was made, or an error raised
    return folder


def _write_total(usage: int, total: int) -> None:
    os.pwrite(usage, b"%0*d" % (_DIGITS, total), 0)


def _remove_file(folders: OpenFolders, file: StoredFile) -> None:
    folder = folders.namespace(file.namespace)
    if folder is not None:
        with suppress(OSError):
            os.unlink(file.name, dir_fd=folder)


def _unlink(folder: int | None, name: str) -> int:
    """Remove one name; the bytes that no longer count."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        os.unlink(name, dir_fd=folder)
    except (FileNotFoundError, IsADirectoryError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
