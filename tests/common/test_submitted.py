"""Loads and stores that nobody waits for: done by the cache's threads, and given up at any time."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from kvlingua.common import storing
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import IdentityError, LayoutError, LoadCancelled, LoadError, StoreError, StoreTimeout
from kvlingua.common.stores.store import Read
from kvlingua.layouts.convert import convert
from kvlingua.layouts.view import View
from tests import spoil
from tests.common.kv import Cache, namespace
from tests.common.stuck import stuck

TOKENS = list(range(1000, 1096))  # 6 chunks of 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in which TOKENS are stored."""
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        assert cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96).committed.wait(10)
    return tmp_path / "store"


@pytest.fixture
def cache(root: Path) -> Iterator[KVCache]:
    with KVCache.open(Config(url=f"file://{root}", load_timeout_s=0.5)) as opened:
        yield opened


def blocked_copies(cache: KVCache) -> threading.Event:
    """Nothing that is submitted to be stored is copied until the event is set."""
    release, began = threading.Event(), threading.Event()

    def block() -> None:
        began.set()
        release.wait(30)

    cache._in_this_process().copies.submit("wait", block)
    assert began.wait(10)
    return release


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_submitted_loads_give_what_was_stored(url: str) -> None:
    with KVCache.open(url) as cache:
        assert cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96).committed.wait(10)
        hit = cache.lookup(namespace(), TOKENS)
        targets = [Cache(namespace(), 96) for _ in range(20)]
        handles = [cache.submit_load(hit, target.view(5, 90), 5, 90) for target in targets]
        for handle, target in zip(handles, targets, strict=True):
            assert handle.wait(10)
            assert handle.error is None
            assert target.same_tokens(Cache(namespace(), 96, seed=1), 5, 90)
            assert target.untouched(90)
        assert cache.stats["tokens_reused"] == 20 * 85


def test_parts_share_memory(cache: KVCache, root: Path) -> None:
    """Each part is copied on before the next one takes its place; a failed one is the last."""
    hit, target, shared = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96), Cache(namespace(), 32)

    def part(start: int, stop: int) -> tuple[View, int, int, Callable[[], None]]:
        source = shared.view(0, stop - start)
        return source, start, stop, lambda: convert(source, target.view(start, stop))

    parts = [part(5, 32), part(32, 64), part(64, 90)]
    handles = [cache.submit_parts(hit, parts) for _ in range(3)]
    for handle in handles:
        assert handle.wait(10)
        assert handle.error is None
    assert target.same_tokens(Cache(namespace(), 96, seed=1), 5, 90)
    assert target.untouched(90)
    with pytest.raises(LoadError, match="97"):
        cache.submit_parts(hit, [(shared.view(0, 17), 80, 97, lambda: None)])

    spoil.flip_byte(spoil.objects(root)[0])
    copied: list[int] = []
    one_by_one = [(shared.view(0, 16), n, n + 16, partial(copied.append, n)) for n in range(0, 96, 16)]
    failed = cache.submit_parts(hit, one_by_one)
    assert failed.wait(10)
    assert isinstance(failed.error, LoadError)
    assert copied == list(range(0, 96, 16))[: len(copied)]
    assert len(copied) < 6
    assert cache.stats["tokens_reused"] == 3 * 85, "parts of a load that fails aren't reused"


@pytest.mark.usefixtures("one_by_one")
def test_cancelled_parts_are_copied_nowhere(root: Path) -> None:
    with KVCache.open(Config(url=f"file://{root}", load_timeout_s=30)) as cache:
        hit, memory = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
        began, release = stuck(cache)
        copied = threading.Event()
        handle = cache.submit_parts(hit, [(memory.view(), 0, 96, copied.set)])
        assert began.wait(10)
        handle.cancel()
        assert isinstance(handle.error, LoadCancelled)
        release.set()
        behind = cache.submit_load(hit, memory.view(), 0, 96)
        assert behind.wait(10)
        assert (behind.error, copied.is_set()) == (None, False)
        assert cache.stats["tokens_reused"] == 96, "those of the one behind"


def test_submitted_lookups_give_what_lookups_give(root: Path) -> None:
    cache = KVCache.open(Config(url=f"file://{root}", lookup_timeout_s=0.5))
    asked = [cache.submit_lookup(namespace(), TOKENS[:count]) for count in range(0, 97, 12)]
    for count, found in zip(range(0, 97, 12), asked, strict=True):
        assert found.result(10)() == cache.lookup(namespace(), TOKENS[:count])
    with pytest.raises(IdentityError):
        cache.submit_lookup(namespace(), [-1] * 16).result(10)()
    release, store = threading.Event(), cache._in_this_process().store
    exists = store.exists_many
    store.exists_many = lambda keys: (release.wait(30), exists(keys))[1]  # type: ignore[method-assign]
    began = time.monotonic()
    asked = [cache.submit_lookup(namespace(), TOKENS) for _ in range(50)]
    assert time.monotonic() - began < 5
    for found in asked:
        with pytest.raises(StoreTimeout):
            found.result(20)()
    release.set()
    cache.close()
    with pytest.raises(StoreError, match="closed"):
        cache.submit_lookup(namespace(), TOKENS)


def test_a_damaged_object_is_in_the_handle_and_is_removed(cache: KVCache, root: Path) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    assert spoil.flip_byte(root) == 6
    handle = cache.submit_load(hit, Cache(namespace(), 96).view(), 0, 96)
    assert handle.wait(10)
    assert isinstance(handle.error, LoadError)
    assert not spoil.objects(root)


def test_what_cannot_be_right_is_told_at_once(cache: KVCache) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    with pytest.raises(LoadError, match="97"):
        cache.submit_load(hit, Cache(namespace(), 97).view(), 0, 97)
    with pytest.raises(LayoutError):
        cache.submit_load(hit, Cache(namespace(), 96).view(), 0, 95)
    with pytest.raises(LayoutError):
        cache.submit_store(namespace(), TOKENS, Cache(namespace(), 96).view(), 0, 95)


@pytest.mark.usefixtures("one_by_one")
def test_a_cancelled_load_writes_nothing(root: Path) -> None:
    """One that is under way, and one that waits behind it: both are over at once."""
    with KVCache.open(Config(url=f"file://{root}", load_timeout_s=30)) as cache:
        hit, targets = cache.lookup(namespace(), TOKENS), [Cache(namespace(), 96) for _ in range(3)]
        began, release = stuck(cache)
        handles = [cache.submit_load(hit, target.view(), 0, 96) for target in targets]
        assert began.wait(10)
        for handle in handles[:2]:
            assert not handle.done()
            handle.cancel()
            assert handle.done()
            assert isinstance(handle.error, LoadCancelled)
        release.set()
        assert handles[2].wait(10)
        assert handles[2].error is None
        assert [target.untouched() for target in targets] == [True, True, False]
        assert isinstance(handles[0].error, LoadCancelled)
        handles[2].cancel()  # too late: it was done
        assert handles[2].error is None


@pytest.mark.parametrize("wait_s", [0, 0.0002, 0.0005, 0.001, 0.002])
def test_after_a_cancel_memory_stays_as_it_is(cache: KVCache, wait_s: float) -> None:
    """Whenever it comes: what is there when `cancel` returns stays."""
    hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
    for _ in range(20):
        handle = cache.submit_load(hit, target.view(), 0, 96)
        time.sleep(wait_s)
        handle.cancel()
        before = [bytes(memory) for memory in target.memory]
        assert handle.error is None or isinstance(handle.error, LoadCancelled)
        time.sleep(0.002)
        assert [bytes(memory) for memory in target.memory] == before


@pytest.mark.usefixtures("one_by_one")
def test_a_hanging_store_fails_all_loads_in_time(cache: KVCache) -> None:
    hit, targets = cache.lookup(namespace(), TOKENS), [Cache(namespace(), 96) for _ in range(4)]
    _, release = stuck(cache)
    start = time.monotonic()
    handles = [cache.submit_load(hit, target.view(), 0, 96) for target in targets]
    for handle in handles:
        assert handle.wait(20)
        assert isinstance(handle.error, StoreTimeout)
    assert time.monotonic() - start < 10
    release.set()
    until(lambda: not cache._in_this_process().loads.hanging)
    assert all(target.untouched() for target in targets)
    handle = cache.submit_load(hit, targets[0].view(), 0, 96)
    assert handle.wait(10)
    assert handle.error is None


@pytest.mark.usefixtures("one_by_one")
def test_time_runs_from_the_submission_on(cache: KVCache) -> None:
    """A slow store: what comes late in the queue isn't begun when its time is over."""
    hit, targets = cache.lookup(namespace(), TOKENS), [Cache(namespace(), 96) for _ in range(20)]
    store, reads = cache._in_this_process().store, []
    read = store.get_many

    def slow(wanted: Sequence[Read]) -> list[int | None]:
        reads.append(time.monotonic())
        time.sleep(0.2)
        return read(wanted)

    store.get_many = slow  # type: ignore[method-assign]
    handles = [cache.submit_load(hit, target.view(), 0, 96) for target in targets]
    submitted = time.monotonic()
    for handle in handles:
        assert handle.wait(20)
    assert isinstance(handles[-1].error, StoreTimeout)
    assert reads[-1] < submitted + 0.5
    until(lambda: not cache._in_this_process().loads.hanging)
    assert targets[-1].untouched()


@pytest.mark.usefixtures("one_by_one")
def test_loads_left_at_the_end_are_cancelled(root: Path) -> None:
    before = set(threading.enumerate())
    cache = KVCache.open(Config(url=f"file://{root}", load_timeout_s=30))
    hit = cache.lookup(namespace(), TOKENS)
    began, release = stuck(cache)
    targets = [Cache(namespace(), 96) for _ in range(2)]
    handles = [cache.submit_load(hit, target.view(), 0, 96) for target in targets]
    assert began.wait(10)
    cache.close(0.1)
    for handle in handles:
        assert handle.done()
        assert isinstance(handle.error, LoadCancelled)
    with pytest.raises(StoreError, match="closed"):
        cache.submit_load(hit, targets[0].view(), 0, 96)
    release.set()
    until(lambda: not any(thread.name == "kvlingua-submitted" for thread in set(threading.enumerate()) - before))
    assert all(target.untouched() for target in targets)


def test_a_done_handle_holds_nothing(cache: KVCache) -> None:
    hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
    view = target.view()
    held = weakref.ref(view.pool)
    loaded, stored = cache.submit_load(hit, view, 0, 96), cache.submit_store(namespace(), TOKENS, view, 0, 96)
    failed = cache.submit_store(namespace(), [1, *TOKENS[1:]], target.pool.view([99], 0, 96), 0, 96)
    assert loaded.wait(10)
    assert stored.copied.wait(10)
    assert failed.copied.wait(10)
    assert isinstance(failed.error, LayoutError)
    del view, target, failed
    until(lambda: (gc.collect() or held()) is None)
    assert loaded.done()


def test_submitted_stores_are_found(url: str) -> None:
    with KVCache.open(url) as cache:
        source = Cache(namespace(), 96, seed=1)
        handles = [cache.submit_store(namespace(), TOKENS, source.view(0, stop), 0, stop) for stop in (40, 96, 96)]
        assert cache.flush(10)
        assert [handle.stored for handle in handles] == [2, 4, 0]
        assert all(handle.committed.is_set() and handle.error is None for handle in handles)
        assert cache.lookup(namespace(), TOKENS).tokens == 96


def test_the_source_is_read_before_copied_is_set_and_not_after(tmp_path: Path) -> None:
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        source, release = Cache(namespace(), 96, seed=1), blocked_copies(cache)
        handle = cache.submit_store(namespace(), TOKENS, source.view(), 0, 96)
        assert not handle.copied.wait(0.05)
        release.set()
        assert handle.copied.wait(10)
        for memory in source.memory:
            memory[:] = bytes(len(memory))
        assert cache.flush(10)
        target = Cache(namespace(), 96)
        cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
        assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_a_cancelled_store_reads_nothing(tmp_path: Path) -> None:
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        release = blocked_copies(cache)
        handle = cache.submit_store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        handle.cancel()
        assert handle.copied.is_set()
        assert handle.committed.is_set()
        release.set()
        assert cache.flush(10)
        assert cache.lookup(namespace(), TOKENS).tokens == 0


def test_a_store_that_is_being_copied_ends_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, release, gather = threading.Event(), threading.Event(), storing._gather

    def slow(*arguments: object) -> None:
        began.set()
        release.wait(30)
        gather(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storing, "_gather", slow)
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        handle = cache.submit_store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert began.wait(10)
        handle.cancel()
        assert not handle.copied.is_set()
        release.set()
        assert handle.copied.wait(10)
        assert cache.flush(10)
        assert handle.stored == 6


def test_stores_left_at_the_end_are_told_and_counted(tmp_path: Path) -> None:
    cache = KVCache.open(f"file://{tmp_path}/store")
    release = blocked_copies(cache)
    handle = cache.submit_store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
    assert not cache.close(0.1)
    assert handle.copied.is_set()
    assert isinstance(handle.error, StoreError)
    assert (handle.stored, handle.dropped, cache.stats["drops"]) == (0, 6, 6)
    release.set()


def test_a_consumer_stores_nothing(tmp_path: Path) -> None:
    with KVCache.open(Config(url=f"file://{tmp_path}/store", role="consumer")) as cache:
        handle = cache.submit_store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.is_set()
        assert (handle.stored, handle.dropped) == (0, 0)
