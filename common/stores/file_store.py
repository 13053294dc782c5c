"""`file:///folder`: a folder shared by processes.

    <root>/<namespace, 64 hex>/<name>       objects, mode 0600, written under a temporary name and then renamed
    <root>/.usage                           bytes in use, and the lock of all changes (eviction.py)

Folders are 0700. Only regular files of our own user are opened. There is no fsync: after a power loss a file may be
damaged, and the checksums inside make it a miss.
"""

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from kvlingua.common.errors import ConfigError, StoreError
from kvlingua.common.stores.eviction import Account, exists
from kvlingua.common.stores.folder import UNREADABLE, OpenFolders, explain, is_ours
from kvlingua.common.stores.new_file import Incoming, NewFile, Writer
from kvlingua.common.stores.store import Bytes, Capabilities, Entry, Read, split_key
from kvlingua.common.stores.temporary import is_temporary

T = TypeVar("T")
P = ParamSpec("P")

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR)
_PLACES = 1 << 16  # keys whose place in a chain is remembered until they are put
_BATCH = 256  # objects for which one writer holds the lock of all
_IOV = 512  # buffers per pwritev; Linux takes 1,024


class FileStore:
    """A store in a folder. Opens nothing before its first call; holds no descriptor between calls."""

    capabilities = Capabilities(shared=True, persistent=True)

    def __init__(self, url: str, max_bytes: int) -> None:
        self.root = folder_of(url)
        self._account = Account(max_bytes)
        self._places: OrderedDict[str, int] = OrderedDict()  # key -> mtime_ns it shall get

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        names = [split_key(key) for key in keys]
        with OpenFolders(self.root) as folders:
            found = []
            for namespace, name in names:
                folder = folders.namespace(namespace)
                found.append(folder is not None and self._explained(exists, folder, name))
        return found

    def get_many(self, reads: Sequence[Read]) -> list[int | None]:
        names = [split_key(read.key) for read in reads]
        with OpenFolders(self.root) as folders:
            sizes = []
            for (namespace, name), read in zip(names, reads, strict=True):
                folder = folders.namespace(namespace)
                sizes.append(None if folder is None else self._explained(_read, folder, name, read))
        return sizes

    def put_many(self, items: Sequence[tuple[str, Sequence[Bytes]]]) -> None:
        views = [[memoryview(buffer).cast("B") for buffer in buffers] for _, buffers in items]
        sizes = [(key, sum(view.nbytes for view in each)) for (key, _), each in zip(items, views, strict=True)]
        self.put_files(sizes, lambda files: [_fill(file, views[file.incoming.index]) for file in files])

    def delete_many(self, keys: Sequence[str]) -> None:
        by_namespace: dict[str, list[str]] = {}
        for key in keys:
            namespace, name = split_key(key)
            by_namespace.setdefault(namespace, []).append(name)
        with OpenFolders(self.root) as folders:
            for namespace, names in by_namespace.items():
                if folders.namespace(namespace) is not None:
                    self._account.remove(folders, namespace, names)

    def scan(self, prefix: str = "") -> Iterator[Entry]:
        with OpenFolders(self.root) as folders:
            try:
                for namespace in folders.names():
                    if namespace.startswith(prefix[:64]):
                        for file in folders.files(namespace):
                            if file.key.startswith(prefix) and not is_temporary(file.name):
                                yield Entry(file.key, file.nbytes, file.mtime_ns / 1e9)
            except OSError as error:
                raise explain(self.root, error) from error

    def touch_chain(self, keys: Sequence[str]) -> None:
        now_ns = time.time_ns()
        with OpenFolders(self.root) as folders:
            for index, key in enumerate(keys):
                namespace, name = split_key(key)
                mtime_ns = now_ns - 1000 * index
                folder = folders.namespace(namespace)
                try:
                    if folder is None:
                        raise FileNotFoundError
                    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    self._places[key] = mtime_ns
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # a store we only read
                        raise explain(self.root, error) from error
        with suppress(KeyError):  # another thread may empty it, too
            while len(self._places) > _PLACES:
                self._places.popitem(last=False)

    @property
    def files(self) -> "FileStore":
        return self

    @contextmanager
    def open_folder(self, namespace: str) -> Iterator[int | None]:
        with OpenFolders(self.root) as folders:
            yield folders.namespace(namespace)

    def put_files(self, items: Sequence[tuple[str, int]], write: Writer) -> None:
        for first in range(0, len(items), _BATCH):
            self._put_batch(items, range(first, min(first + _BATCH, len(items))), write)

    def _put_batch(self, items: Sequence[tuple[str, int]], batch: range, write: Writer) -> None:
        with OpenFolders(self.root) as folders:
            objects, stop = self._missing(folders, items, batch)
            files, full = self._account.reserve(folders, objects) if objects else ([], None)
            if full is not None:
                full.stored = objects[len(files)].index
                stop = full
            committed = 0
            try:
                outcomes = write(files) if files else []
                written = next((place for place, error in enumerate(outcomes) if error), len(files))
                if written < len(files):
                    error = outcomes[written]
                    assert error is not None
                    stop = explain(self.root / items[files[written].incoming.index][0], error)
                    stop.stored = files[written].incoming.index
                committed, refused = self._account.commit(folders, files[:written]) if written else (0, None)
                if refused is not None:
                    refused.stored = files[committed].incoming.index
                    stop = refused
            finally:
                self._discard(folders, files[committed:])
        if stop is not None:
            raise stop

    def close(self) -> None:
        self._places.clear()

    def describe(self) -> str:
        return f"file://{self.root}"

    def _missing(
        self, folders: OpenFolders, items: Sequence[tuple[str, int]], batch: range
    ) -> tuple[list[Incoming], StoreError | None]:
        """A batch's objects that aren't there, up to the first whose folder can't be used, and why it can't."""
        now_ns = time.time_ns()
        objects: list[Incoming] = []
        for index in batch:
            key, nbytes = items[index]
            namespace, name = split_key(key)
            try:
                folder = folders.namespace(namespace, create=True)
                there = folder is not None and self._explained(exists, folder, name)
            except StoreError as error:
                error.stored = index
                return objects, error
            time_ns = self._places.pop(key, now_ns - 1000 * index)
            if not there:
                objects.append(Incoming(index, namespace, name, nbytes, time_ns))
        return objects, None

    def _discard(self, folders: OpenFolders, files: Sequence[NewFile]) -> None:
        by_namespace: dict[str, list[str]] = {}
        for file in files:
            by_namespace.setdefault(file.incoming.namespace, []).append(file.temporary)
        for namespace, names in by_namespace.items():
            with suppress(StoreError):
                self._account.remove(folders, namespace, names)

    def _explained(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise explain(self.root, error) from error


def folder_of(url: str) -> Path:
    """The folder that a file:// URL names. Raises ConfigError unless it is file:///absolute/path."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from None
    path = unquote(parts.path)
    if (
        parts.scheme != "file"
        or parts.netloc
        or parts.query
        or parts.fragment
        or not path.startswith("/")
        or "\0" in path
    ):
        raise ConfigError(
            f"the store URL {url!r} doesn't name a folder of this machine; expected file:///absolute/path"
        )
    return Path(os.path.normpath(path))


def _read(folder: int, name: str, read: Read) -> int | None:
    """Fill one read's buffer from one file, opened without following links and without waiting for a FIFO's writer.

    A file of ours that can't be read counts as one that ends there: it is damaged, and can be removed like others.
    """
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        if error.errno in UNREADABLE:
            return 0 if exists(folder, name) else None
        raise
    filled = 0
    try:
        status = os.fstat(descriptor)
        if not is_ours(status):
            return None
        while filled < read.into.nbytes:
            count = os.preadv(descriptor, [read.into[filled:]], read.offset + filled)
            if count == 0:
                return min(status.st_size, read.offset + filled)
            filled += count
        return status.st_size
    except OSError as error:
        if error.errno in UNREADABLE:
            return read.offset + filled
        raise
    finally:
        os.close(descriptor)


def _fill(file: NewFile, views: list[memoryview]) -> OSError | None:
    try:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(file.temporary, flags, dir_fd=file.folder)
        try:
            _write(descriptor, views)
            os.utime(descriptor, ns=(file.incoming.time_ns, file.incoming.time_ns))
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return None


def _write(descriptor: int, views: list[memoryview]) -> None:
    offset = 0
    pending = [view for view in views if view.nbytes]
    while pending:
        written = os.pwritev(descriptor, pending[:_IOV], offset)
        offset += written
        while written:
            first = pending[0]
            if written < first.nbytes:
                pending[0] = first[written:]
                break
            written -= first.nbytes
            pending.pop(0)
