"""What every store does, and how a URL becomes one.

A store keeps objects: immutable bytes under a key of `keys.py`. It works on batches, it knows nothing of tokens or
layouts, and it never holds more bytes than its cap. To add one: a class with these methods, a row in `STORES`, and a
test class that derives from `conformance.StoreConformance`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

from kvlingua.common.errors import ConfigError, IdentityError
from kvlingua.common.stores.new_file import Writer

Bytes: TypeAlias = bytes | bytearray | memoryview

_KEY = re.compile(r"([0-9a-f]{64})/([0-9a-f]{64}-[a-z0-9-]{1,80}\.safetensors|namespace\.json)")


def split_key(key: str) -> tuple[str, str]:
    """(namespace, name) of a key. Raises IdentityError for anything that could name something else than an object."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise IdentityError(f"not the key of an object: {key[:200]!r}; expected <namespace, 64 hex>/<name>.safetensors")
    return match[1], match[2]


def is_key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes [offset, offset + len(into)) of one object, to be put into `into`, writable and contiguous."""

    key: str
    offset: int
    into: memoryview


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object: its size in bytes, and its recency in seconds since the epoch."""

    key: str
    nbytes: int
    mtime: float


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store promises beyond the protocol. The conformance suite skips what a store says it doesn't do."""

    shared: bool  # two stores opened from one URL, in any processes, see the same objects
    persistent: bool  # objects outlive the process


class Files(Protocol):
    """What a store can do besides whose objects are files of this machine, one each: its bytes needn't pass through
    Python. Raises StoreError."""

    def open_folder(self, namespace: str) -> AbstractContextManager[int | None]:
        """Descriptor of the folder in which a namespace's objects lie under the second part of their keys; None if
        there is none. Who reads them opens regular files only, and follows no link."""

    def put_files(self, items: Sequence[tuple[str, int]], write: Writer) -> None:
        """`put_many` for objects of so many bytes each, which `write` puts into the files it is given."""


class Store(Protocol):
    """Batches of objects. Every method may be called from any thread; none writes to a buffer after it has returned.

    Raises StoreError where the store itself fails (StoreFull: no room), IdentityError for a key that isn't one. One
    damaged, missing or foreign object is never an error of the store.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def files(self) -> Files | None:
        """The way past `get_many` and `put_many`, if its objects are local files."""

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        """Which of the objects are there. No side effects."""

    def get_many(self, reads: Sequence[Read]) -> list[int | None]:
        """Fill the buffers. For each: the object's whole size in bytes, or None if it isn't there.

        An object that ends inside the wanted range fills the buffer as far as it goes.
        """

    def put_many(self, items: Sequence[tuple[str, Sequence[Bytes]]]) -> None:
        """Store objects, each the concatenation of its buffers, each visible as a whole or not at all.

        An object that is there already is kept as it is. Order matters when room is short: earlier ones are stored
        first, and an object that would be the next to be evicted is not taken in. Raises StoreFull or StoreError
        at the first object that can't be stored; those before it are, and the error's `stored` is their number.
        """

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects; absent ones are no error. A reader that is in the middle of one still gets its bytes."""

    def scan(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, in no order. Ones that come or go meanwhile may be missed."""

    def touch_chain(self, keys: Sequence[str]) -> None:
        """Mark the chain, given from its head, as just used: the head newest, so that it is evicted from its tail.

        Keys that aren't there yet keep their place for a `put_many` that follows.
        """

    def close(self) -> None:
        """Give back what the process holds for this store. Objects stay."""

    def describe(self) -> str:
        """What a person would call this store, for log lines."""


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A scheme's implementation (`module:class`, made from the URL and the cap in bytes), and a sentence for people."""

    implementation: str
    sentence: str


STORES: dict[str, StoreKind] = {
    "file": StoreKind(
        "kvlingua.common.stores.file_store:FileStore",
        "file:///folder - a folder shared by processes",
    ),
    "memory": StoreKind(
        "kvlingua.common.stores.memory_store:MemoryStore",
        "memory:// - this process only, gone with it",
    ),
}


def store_kind(url: str) -> StoreKind:
    """Which kind of store a URL means. Raises ConfigError that names the known ones."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in STORES:
        known = "; ".join(kind.sentence for kind in STORES.values())
        raise ConfigError(f"no store is known for the URL {url!r}; expected one of: {known}")
    return STORES[scheme]


def open_store(url: str, max_bytes: int) -> Store:
    """The store behind a URL, never holding more than `max_bytes`. Touches nothing yet: files are opened at first use.

    Raises ConfigError for a URL that can't be one.
    """
    module, _, name = store_kind(url).implementation.partition(":")
    store: Store = getattr(import_module(module), name)(url, max_bytes)
    return store
