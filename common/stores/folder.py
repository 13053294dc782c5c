"""The folders of a file store, opened so that nothing in them can lead elsewhere.

Folders are opened as folders and never through a link; what others could have written is refused. All access goes
through their file descriptors, so that a folder exchanged for a link in between changes nothing.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kvlingua.common.errors import StoreError, StoreFull
from kvlingua.common.stores.store import is_key
from kvlingua.common.stores.temporary import is_temporary

USAGE_FILE = ".usage"  # see eviction.py
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What can be wrong with one file while the others are right: its bytes or its inode are lost, or it is locked away.
UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One regular file of a namespace's folder: an object, its namespace's JSON, or a temporary one."""

    namespace: str
    name: str
    nbytes: int
    mtime_ns: int

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def explain(path: Path | str, error: OSError) -> StoreError:
    """What went wrong at `path`, and what to do about it."""
    what = f"the store at {path}: {error.strerror or error}"
    if error.errno in _NO_ROOM:
        return StoreFull(f"{what}; free some space or name a store elsewhere")
    if error.errno in _NOT_ALLOWED:
        return StoreError(f"{what}; make it a folder that user {os.geteuid()} can write, or name a store elsewhere")
    return StoreError(f"{what}; expected a private folder of user {os.geteuid()}, or a place where one can be made")


def is_ours(status: os.stat_result) -> bool:
    """Whether this is a regular file that only our user can have written."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def is_store(path: Path) -> bool:
    """Whether a store has been kept in this folder, or could be: it is empty."""
    names = os.listdir(path)
    return not names or any(name == USAGE_FILE or is_key(f"{name}/namespace.json") for name in names)


class OpenFolders:
    """The store's root and its namespaces' folders for the length of one batch; `with` closes them.

    Keeps no descriptor longer, so a folder that was removed and made anew is seen, and a forked child inherits nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root_path = root
        self._root: int | None = None
        self._namespaces: dict[str, int] = {}

    def __enter__(self) -> "OpenFolders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._namespaces.values():
            os.close(descriptor)
        if self._root is not None:
            os.close(self._root)
        self._namespaces, self._root = {}, None

    def root(self, *, create: bool = False) -> int | None:
        """Descriptor of the root; None if there is none. Raises StoreError if it can't be used or made."""
        if self._root is None:
            try:
                if create:
                    _make_private(self.root_path)
                self._root = os.open(self.root_path, _OPEN_FOLDER)
            except FileNotFoundError as error:
                if create:
                    raise explain(self.root_path, error) from error
                return None
            except OSError as error:
                raise explain(self.root_path, error) from error
            _check_private(self._root, self.root_path)
        return self._root

    def namespace(self, name: str, *, create: bool = False) -> int | None:
        """Descriptor of a namespace's folder; None if there is none, or one that isn't ours while only reading.

        With `create`: made if absent, and StoreError if something else is in the way.
        """
        if name in self._namespaces:
            if not create or os.fstat(self._namespaces[name]).st_nlink:
                return self._namespaces[name]
            os.close(self._namespaces.pop(name))  # an evictor has removed the folder meanwhile
        root = self.root(create=create)
        if root is None:
            return None
        path = self.root_path / name
        try:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=root)
            descriptor = os.open(name, _OPEN_FOLDER, dir_fd=root)
        except OSError as error:
            if create or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                raise explain(path, error) from error
            return None
        try:
            _check_private(descriptor, path)
        except StoreError:
            os.close(descriptor)
            if create:
                raise
            return None
        self._namespaces[name] = descriptor
        return descriptor

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace's folder if it is empty."""
        root = self.root()
        if root is not None:
            with suppress(OSError):
                os.rmdir(name, dir_fd=root)

    def names(self) -> list[str]:
        """The namespaces that have a folder."""
        root = self.root()
        if root is None:
            return []
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if is_key(f"{entry.name}/namespace.json")]

    def files(self, namespace: str) -> Iterator[StoredFile]:
        """Our regular files in one namespace's folder; anything else in it is passed over."""
        known = namespace in self._namespaces
        folder = self.namespace(namespace)
        if folder is None:
            return
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not is_temporary(entry.name) and not is_key(f"{namespace}/{entry.name}"):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        if error.errno == errno.ENOENT or error.errno in UNREADABLE:
                            continue
                        raise
                    if stat.S_ISREG(status.st_mode):
                        yield StoredFile(namespace, entry.name, status.st_size, status.st_mtime_ns)
        finally:
            if not known:  # a scan of many namespaces holds one descriptor at a time
                os.close(self._namespaces.pop(namespace))


def _make_private(path: Path) -> None:
    if path.is_dir():
        return
    for folder in [*reversed(path.parents), path]:
        if not folder.is_dir():
            with suppress(FileExistsError):
                folder.mkdir(0o700)


def _check_private(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StoreError(
            f"the store at {path} belongs to user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}; expected a "
            f"folder that only user {os.geteuid()} can write: name one that doesn't exist yet, it is made private"
        )
