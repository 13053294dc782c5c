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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from kvlingua.common.errors import StoreError, StoreFull, StoreTimeout
from kvlingua.common.file_lock import locked
from kvlingua.common.identity.keys import NAMESPACE_FILE
from kvlingua.common.stores import temporary
from kvlingua.common.stores.folder import UNREADABLE, USAGE_FILE, OpenFolders, StoredFile, explain, is_ours
from kvlingua.common.stores.new_file import Incoming, NewFile

_DIGITS = 20
_LOCK_TIMEOUT_S = 10.0  # longer than any eviction; a holder that was stopped must not stop the others for good
_FUTURE_S = 60.0  # a file dated later than this was dated by a wrong clock: its age is unknown, it goes first


class Account:
    """The bytes of one file store, and who has to go when there is no room."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._thread_lock = threading.Lock()  # flock doesn't tell the threads of a process apart
        self._counted = False

    def reserve(self, folders: OpenFolders, objects: Sequence[Incoming]) -> tuple[list[NewFile], StoreError | None]:
        """Make room for objects, in their order, and a temporary file of the size of each.

        Those for which that was done, and why it couldn't be done for the next: StoreFull if everything that could go
        was used more recently than it.
        """
        files: list[NewFile] = []
        try:
            with self._locked(folders) as usage:
                total = self._total(folders, usage)
                for one in objects:
                    total = self._make_room(folders, usage, total, one)
                    files.append(_make_file(folders, usage, total, one))
                    total += one.nbytes
        except StoreError as error:
            return files, error
        return files, None

    def commit(self, folders: OpenFolders, files: Sequence[NewFile]) -> tuple[int, StoreError | None]:
        """Give temporary files their names, unless somebody else's objects have them by now. How many of the first
        have theirs, and why the next hasn't."""
        done = 0
        try:
            with self._locked(folders) as usage:
                for file in files:
                    folder, name = _writable(folders, file.incoming.namespace), file.incoming.name
                    if exists(folder, name):
                        os.unlink(file.temporary, dir_fd=folder)
                        _write_total(usage, max(0, self._total(folders, usage) - file.incoming.nbytes))
                    else:
                        _rename(folders, folder, file)
                    temporary.forget(file.temporary)
                    done += 1
        except StoreError as error:
            return done, error
        return done, None

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

    def _make_room(self, folders: OpenFolders, usage: int, total: int, one: Incoming) -> int:
        """The bytes in the store once there is room for one more object. Raises StoreFull."""
        if one.nbytes > self._max_bytes:
            raise StoreFull(
                f"an object of {one.nbytes} bytes never fits into a store of at most {self._max_bytes} (max_bytes)"
            )
        if total + one.nbytes > self._max_bytes:
            total = self._evict(folders, one.namespace, one.nbytes, one.time_ns)
            _write_total(usage, total)
        if total + one.nbytes > self._max_bytes:
            raise StoreFull(
                f"the store at {folders.root_path} holds {total} bytes of max_bytes = {self._max_bytes}, "
                "all used more recently than what should be stored; raise max_bytes"
            )
        return total

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


def _make_file(folders: OpenFolders, usage: int, total: int, one: Incoming) -> NewFile:
    """A temporary file for an object, in a store of `total` bytes that has room for it."""
    file = NewFile(one, _writable(folders, one.namespace), temporary.new_name())
    descriptor = -1
    try:
        _write_total(usage, total + one.nbytes)  # first: where we are killed, too much is counted, never too little
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file.temporary, flags, 0o600, dir_fd=file.folder)
        os.ftruncate(descriptor, one.nbytes)
    except OSError:
        temporary.forget(file.temporary)
        if descriptor >= 0:
            os.unlink(file.temporary, dir_fd=file.folder)
        _write_total(usage, total)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return file


def _rename(folders: OpenFolders, folder: int, file: NewFile) -> None:
    name = file.incoming.name
    try:
        os.rename(file.temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except IsADirectoryError:
        path = folders.root_path / file.incoming.namespace / name
        raise StoreError(f"{path} is a folder where an object should be; remove it") from None


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
