"""Whatever is wrong with the store: a load fails as a whole, no damaged byte reaches the engine, nobody waits."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import LoadError, StoreError, StoreFull, StoreTimeout
from kvlingua.common.log import ensure_visible
from kvlingua.common.stores.store import Read
from tests import spoil
from tests.common.kv import Cache, namespace

TOKENS = list(range(96))


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged once, in another test, may be logged again."""
    monkeypatch.setattr(log, "_seen", {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with 6 chunks of TOKENS."""
    root = tmp_path / "store"
    with KVCache.open(f"file://{root}") as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(10)
        assert handle.error is None
    assert len(spoil.objects(root)) == 6
    return root


@pytest.fixture
def cache(root: Path, way: str) -> Iterator[KVCache]:
    with KVCache.open(f"file://{root}") as cache:
        yield cache


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (spoil.flip_byte, "checksum"),
        (lambda root: spoil.flip_byte(root, 0.6), "checksum"),
        (lambda root: spoil.flip_byte(root, 0.001), None),
        (lambda root: spoil.flip_byte(root, 0.05), None),
        (spoil.truncate, "size"),
        (lambda root: spoil.truncate(root, 0.0), "size"),
        (lambda root: spoil.truncate(root, 0.999), "size"),
        (spoil.garbage, None),
        (spoil.swap, "identity"),
    ],
    ids=["flip V", "flip K", "flip header", "flip metadata", "half", "empty", "short", "garbage", "swapped"],
)
def test_damage_is_refused_removed_and_stored_anew(
    cache: KVCache, root: Path, damage: Callable[[Path], int], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    source = Cache(namespace(), 96, seed=1)
    target = Cache(namespace(), 96)
    assert damage(root) == 6
    hit = cache.lookup(namespace(), TOKENS)
    assert hit.tokens == 96
    with caplog.at_level(logging.WARNING), pytest.raises(LoadError, match="6 of 6 objects are damaged") as caught:
        cache.load(hit, target.view(), 0, 96)
    assert reason is None or caught.value.__cause__.reason == reason  # type: ignore[union-attr]
    assert target.untouched()
    assert "damaged objects are removed" in caplog.text
    assert len(caplog.records) <= 6
    assert cache.stats["corrupt_objects"] == 6
    assert cache.stats["tokens_reused"] == 0
    assert spoil.objects(root) == []
    assert cache.lookup(namespace(), TOKENS).tokens == 0
    handle = cache.store(namespace(), TOKENS, source.view(), 0, 96)
    assert handle.committed.wait(10)
    assert handle.stored == 6
    cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
    assert target.same_tokens(source, 0, 96)


def test_one_damaged_object_spoils_the_whole_load_and_only_itself(cache: KVCache, root: Path, way: str) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    victim = sorted(hit.keys(0, 6))[3]
    path = root / victim
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    target = Cache(namespace(), 96)
    with pytest.raises(LoadError, match="1 of 6 objects are damaged"):
        cache.load(hit, target.view(), 0, 96)
    intact = {*range(6)} - {list(hit.keys(0, 6)).index(victim)} if way == "in bulk" else ()
    assert target.holds_at_most(Cache(namespace(), 96, seed=1), intact)
    assert len(spoil.objects(root)) == 5
    assert not path.exists()


def test_negated_v_under_a_valid_checksum_loads_as_it_is(cache: KVCache, root: Path) -> None:
    """What the checksum can't know: the tests of engines use this to prove that they use what they load."""
    source, target = Cache(namespace(), 96, seed=1), Cache(namespace(), 96)
    assert spoil.negate_v(root) == 6
    cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
    for index, (ours, theirs) in enumerate(zip(target.memory, source.memory, strict=True)):
        is_v = index % 2 == 1  # planes k, v, k, v, ...
        assert ours == bytes(byte ^ 0x80 if is_v and place % 4 == 3 else byte for place, byte in enumerate(theirs))


def test_an_object_gone_since_the_lookup_fails_the_load(cache: KVCache, root: Path, way: str) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    (root / list(hit.keys(0, 6))[2]).unlink()
    target = Cache(namespace(), 96)
    with pytest.raises(LoadError, match="1 of 6 objects are gone since the lookup"):
        cache.load(hit, target.view(), 0, 96)
    assert target.holds_at_most(Cache(namespace(), 96, seed=1), (0, 1) if way == "in bulk" else ())
    assert cache.stats["corrupt_objects"] == 0
    cache.load(hit, target.view(0, 32), 0, 32)  # what is still there is as good as before
    shutil.rmtree(root)
    with pytest.raises(LoadError, match="gone"):
        cache.load(hit, target.view(0, 32), 0, 32)


def test_garbage_in_place_of_a_namespace_is_a_miss(cache: KVCache, root: Path) -> None:
    folder = root / namespace().digest
    shutil.rmtree(folder)
    folder.write_text("a file where a folder should be")
    assert cache.lookup(namespace(), TOKENS).tokens == 0
    handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
    assert handle.committed.wait(10)
    assert isinstance(handle.error, StoreError)
    assert str(folder) in str(handle.error)
    assert cache.stats["drops"] == 6


@pytest.mark.parametrize("bad", ["file", "below a file", "link", "read-only"])
def test_a_folder_that_cannot_be_written_costs_no_request(
    tmp_path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "store"
    if bad == "file":
        root.write_text("")
    elif bad == "below a file":
        (tmp_path / "file").write_text("")
        root = tmp_path / "file" / "store"
    elif bad == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(tmp_path / "elsewhere")
    else:
        root = Path("/proc/kvlingua")  # nothing can be made there, by anybody
    ensure_visible("info")
    with KVCache.open(Config(url=f"file://{root}")) as cache, caplog.at_level(logging.WARNING):
        for attempt in range(3):
            handle = cache.store(namespace(), [attempt, *TOKENS], Cache(namespace(), 97, seed=1).view(), 0, 97)
            assert handle.copied.is_set()
            assert handle.committed.wait(10)
            assert isinstance(handle.error, StoreError)
            assert str(root) in str(handle.error)
            assert handle.dropped == 6
        assert cache.flush(10)
        assert cache.stats["drops"] == 18
    if bad == "link":
        assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_costs_no_request(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", root], check=True)
    try:
        with KVCache.open(f"file://{root}") as cache:
            source = Cache(namespace(), 96, seed=1)
            handle = cache.store(namespace(), TOKENS, source.view(), 0, 96)
            assert handle.committed.wait(10)
            assert isinstance(handle.error, StoreFull)
            assert "No space left" in str(handle.error)
            hit = cache.lookup(namespace(), TOKENS)
            assert 0 < hit.tokens < 96  # what did fit is whole
            assert cache.stats["drops"] == handle.dropped == 6 - hit.tokens // 16
            target = Cache(namespace(), 96)
            cache.load(hit, target.view(0, hit.tokens), 0, hit.tokens)
            assert target.same_tokens(source, 0, hit.tokens)
        assert not list(root.glob("*/.tmp*"))
    finally:
        subprocess.run(["umount", root], check=True)


def test_what_was_stored_before_the_store_was_full_counts_as_stored(tmp_path: Path) -> None:
    with KVCache.open(Config(url=f"file://{tmp_path}/store", max_bytes=50_000)) as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
        assert handle.committed.wait(10)
        assert isinstance(handle.error, StoreFull)
        there = len(spoil.objects(tmp_path / "store"))
        assert 0 < there < 6
        assert (handle.stored, handle.dropped) == (there, 6 - there)
        stats = cache.stats
        assert (stats["tokens_stored"], stats["drops"]) == (there * 16, 6 - there)
        assert stats["bytes_written"] == sum(path.stat().st_size for path in spoil.objects(tmp_path / "store"))


def test_what_is_given_up_at_close_is_told_and_counted(tmp_path: Path) -> None:
    cache, gate = KVCache.open(f"file://{tmp_path}/store"), threading.Event()
    running = cache._in_this_process()
    running.queue.submit("touch", lambda: gate.wait(30) and None)
    handle = cache.store(namespace(), TOKENS, Cache(namespace(), 96, seed=1).view(), 0, 96)
    assert handle.stored == 6
    assert not cache.close(0.1)
    gate.set()
    assert handle.committed.wait(10)
    assert isinstance(handle.error, StoreError)
    assert "closed" in str(handle.error)
    assert (handle.stored, handle.dropped, cache.stats["drops"]) == (0, 6, 6)
    assert not running.pending
    assert running.store_memory.available() == running.config.queue_bytes


@pytest.mark.usefixtures("one_by_one")
def test_a_load_ends_at_one_deadline_and_delays_no_lookup(root: Path) -> None:
    """One load of 0.6 s after the other, at a deadline of 1 s: the second has 0.4 s left when its turn comes."""
    with KVCache.open(Config(url=f"file://{root}", load_timeout_s=1, lookup_timeout_s=0.5)) as cache:
        hit = cache.lookup(namespace(), TOKENS)
        store, began = cache._in_this_process().store, threading.Event()
        read = store.get_many

        def slow(reads: Sequence[Read]) -> list[int | None]:
            began.set()
            time.sleep(0.6)
            return read(reads)

        store.get_many = slow  # type: ignore[method-assign]
        loads = [threading.Thread(target=cache.load, args=(hit, Cache(namespace(), 96).view(), 0, 96))]
        loads[0].start()
        assert began.wait(10)
        start = time.monotonic()
        assert cache.lookup(namespace(), TOKENS) == hit  # within its own deadline, and well before the load is done
        assert loads[0].is_alive()
        with pytest.raises(StoreTimeout, match="within 1 s"):
            cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
        assert time.monotonic() - start < 1.5
        loads[0].join()
        deadline = time.monotonic() + 10
        while cache._in_this_process().loads.hanging:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.usefixtures("one_by_one")
def test_memory_of_a_stuck_load_is_not_lost(root: Path) -> None:
    """What it writes late goes where nobody reads, and later loads use the same memory."""
    size = spoil.objects(root)[0].stat().st_size + 64
    with KVCache.open(Config(url=f"file://{root}", load_timeout_s=0.3, queue_bytes=6 * size)) as cache:
        hit = cache.lookup(namespace(), TOKENS)
        running, gate = cache._in_this_process(), threading.Event()
        read = running.store.get_many

        def stuck(reads: Sequence[Read]) -> list[int | None]:
            gate.wait(30)
            for one in reads:
                one.into[:] = b"\xee" * one.into.nbytes
            return [None] * len(reads)

        for _ in range(3):
            gate.clear()
            running.store.get_many = stuck  # type: ignore[method-assign]
            with pytest.raises(StoreTimeout):
                cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
            running.store.get_many = read  # type: ignore[method-assign]
            target = Cache(namespace(), 96)
            with pytest.raises(StoreTimeout, match="hangs"):
                cache.load(hit, target.view(), 0, 96)
            gate.set()
            deadline = time.monotonic() + 10
            while running.loads.hanging:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert target.untouched()
            cache.load(hit, target.view(), 0, 96)
            assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_a_forked_child_has_threads_of_its_own(root: Path) -> None:
    """The parent's threads don't exist in the child; it must not wait for them."""
    program = f"""
import os, sys
from kvlingua.common.cache import KVCache
from tests.common.kv import Cache, namespace
cache = KVCache.open("file://{root}")
tokens = list(range(96))
assert cache.lookup(namespace(), tokens).tokens == 96
source = Cache(namespace(), 96, seed=3)
child = os.fork()
if child == 0:
    target = Cache(namespace(), 96)
    hit = cache.lookup(namespace(), tokens)
    assert list(cache._running) == [os.getpid()], "the parent's memory is kept"
    cache.load(hit, target.view(), 0, 96)
    assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)
    handle = cache.store(namespace(), [9, *tokens[1:]], source.view(), 0, 96)
    assert handle.committed.wait(10) and handle.error is None and handle.stored == 6
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert cache.lookup(namespace(), [9, *tokens[1:]]).tokens == 96
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=60)


def test_what_is_queued_is_written_before_the_process_ends(tmp_path: Path) -> None:
    program = f"""
from kvlingua.common.cache import KVCache
from tests.common.kv import Cache, namespace
cache = KVCache.open("file://{tmp_path}/store")
cache.store(namespace(), list(range(96)), Cache(namespace(), 96, seed=1).view(), 0, 96)
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=60)
    assert len(spoil.objects(tmp_path / "store")) == 6
