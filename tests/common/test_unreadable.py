"""An object that the system can't read is damaged, like one with wrong bytes. A process in trouble damages none."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlingua.common import bulk
from kvlingua.common.cache import KVCache
from kvlingua.common.errors import LoadError, StoreError
from tests import spoil
from tests.common.kv import Cache, namespace

TOKENS = list(range(96))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KVCache]:
    """With 6 chunks of TOKENS. Python's own calls fail here; test_bulk_loads.py has a file system that fails."""
    monkeypatch.setattr(bulk, "available", lambda: False)
    with KVCache.open(f"file://{root}") as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(10)
        assert handle.error is None
        yield cache


def failing(name: str, victim: Path, error: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The system call `name`, which fails for this one file."""

    def call(*arguments: Any, **options: Any) -> Any:
        if name == "preadv":
            touched = Path(os.readlink(f"/proc/self/fd/{arguments[0]}")) == victim
        else:
            touched = str(arguments[0]) == victim.name
        if touched and not (name == "open" and arguments[1] & os.O_CREAT):
            raise OSError(error, os.strerror(error))
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE])
@pytest.mark.parametrize("name", ["preadv", "open"])
def test_an_object_that_cannot_be_read_is_removed_and_stored_anew(
    cache: KVCache, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: int
) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    assert hit.tokens == 96
    victim, target = root / list(hit.keys(0, 6))[2], Cache(namespace(), 96)
    with monkeypatch.context() as broken:
        broken.setattr(os, name, failing(name, victim, error, getattr(os, name)))
        with pytest.raises(LoadError, match="1 of 6 objects are damaged"):
            cache.load(hit, target.view(), 0, 96)
        assert not victim.exists()
        assert len(spoil.objects(root)) == 5
        assert cache.stats["corrupt_objects"] == 1
        assert cache.lookup(namespace(), TOKENS).tokens == 32
    assert target.untouched()
    handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
    assert handle.committed.wait(10)
    assert (handle.stored, handle.error) == (1, None)
    cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
    assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_an_object_whose_inode_is_lost_is_a_miss(cache: KVCache, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = root / list(cache.lookup(namespace(), TOKENS).keys(0, 6))[2]
    monkeypatch.setattr(os, "stat", failing("stat", victim, errno.EIO, os.stat))
    assert cache.lookup(namespace(), TOKENS).tokens == 32


def test_trouble_of_the_process_removes_nothing(cache: KVCache, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    victim = root / list(hit.keys(0, 6))[2]
    with monkeypatch.context() as busy:
        busy.setattr(os, "open", failing("open", victim, errno.EMFILE, os.open))
        with pytest.raises(StoreError, match="Too many open files"):
            cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
    assert len(spoil.objects(root)) == 6
    cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
