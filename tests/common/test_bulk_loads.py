"""Whole loads in bulk: any part by any threads, from damaged or failing files, given up or stopped in the middle."""

import errno
import os
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.common import bulk
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.container import Container
from kvlingua.common.errors import LoadError, StoreError, StoreTimeout
from kvlingua.common.slots import passing
from kvlingua.layouts import native
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import make_plan
from tests import spoil
from tests.common.kv import TOKENS, Cache, fill, namespace
from tests.common.samples import stored
from tests.common.test_bulk import Reader, opened, put, scratch
from tests.hanging import hanging_folder

pytestmark = pytest.mark.skipif(not bulk.available(), reason=native.describe())


@given(data=st.data())
@settings(max_examples=40)
def test_any_part_of_a_prompt_for_any_part_of_a_model(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Written by two ranks, read by any, with any number of threads and memory for as many or fewer."""
    store = tmp_path_factory.mktemp("store") / "store"
    one, source = namespace(layers_per_shard=1), Cache(namespace(layers_per_shard=1), 96, seed=1)
    with KVCache.open(f"file://{store}") as cache:
        for half in (Extent(0, 2, 0, 3), Extent(2, 4, 0, 3)):
            assert cache.store(one, TOKENS, source.view(), 0, 96, extent=half).committed.wait(10)
    size = spoil.objects(store)[0].stat().st_size + 4096
    threads, room = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)) * size
    start, stop = sorted(data.draw(st.lists(st.integers(0, 96), min_size=2, max_size=2)))
    head, layer = (
        sorted(data.draw(st.lists(st.integers(0, high), min_size=2, max_size=2, unique=True))) for high in (4, 3)
    )
    extent = Extent(*head, *layer)
    with KVCache.open(Config(url=f"file://{store}", threads=threads, queue_bytes=room)) as cache:
        target = Cache(one, 96, extent=extent)
        cache.load(cache.lookup(one, TOKENS, extent=extent), target.view(start, stop), start, stop)
        assert target.untouched(0, start)
        assert target.same_tokens(source.part(extent), start, stop)
        assert target.untouched(stop)


@pytest.mark.parametrize("threads", [1, 4])
def test_every_damaged_object_is_found_whatever_the_threads(tmp_path: Path, threads: int) -> None:
    for turn in range(20):
        store = tmp_path / str(turn)
        fill(f"file://{store}")
        with KVCache.open(Config(url=f"file://{store}", threads=threads)) as cache:
            hit = cache.lookup(namespace(), TOKENS)
            keys = list(hit.keys(0, 6))
            for bad in (1, 4):
                spoil.flip_byte(store / keys[bad])
            (store / keys[2]).unlink()
            target = Cache(namespace(), 96)
            with pytest.raises(LoadError, match="2 of 6 objects are damaged"):
                cache.load(hit, target.view(), 0, 96)
            assert target.holds_at_most(Cache(namespace(), 96, seed=1), (0, 3, 5))
            assert cache.stats["corrupt_objects"] == 2
        assert {path.name for path in spoil.objects(store)} == {Path(keys[good]).name for good in (0, 3, 5)}


@pytest.mark.parametrize("fault", [{"open": errno.EIO}, {"read": errno.EIO}, {"open": errno.EACCES}, {"end": 1000}])
def test_an_object_that_cannot_be_read_is_removed_and_stored_anew(tmp_path: Path, fault: dict[str, int]) -> None:
    with hanging_folder(tmp_path) as folder:
        url = f"file://{folder.path}/store"
        fill(url)
        with KVCache.open(Config(url=url, lookup_timeout_s=30, load_timeout_s=30)) as cache:
            hit, source = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96, seed=1)
            victim, target = list(hit.keys(0, 6))[2], Cache(namespace(), 96)
            folder.spoil(**{Path(victim).name: fault})
            with pytest.raises(LoadError, match="1 of 6 objects are damaged"):
                cache.load(hit, target.view(), 0, 96)
            assert target.holds_at_most(source, (0, 1))
            assert cache.stats["corrupt_objects"] == 1
            assert cache.lookup(namespace(), TOKENS).tokens == 32
            folder.spoil()
            handle = cache.store(namespace(), TOKENS, source.view(), 0, 96)
            assert handle.committed.wait(30)
            assert (handle.stored, handle.error) == (1, None)
            cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
            assert target.same_tokens(source, 0, 96)


def test_trouble_of_the_process_removes_nothing(tmp_path: Path) -> None:
    with hanging_folder(tmp_path) as folder:
        url = f"file://{folder.path}/store"
        fill(url)
        with KVCache.open(Config(url=url, lookup_timeout_s=30, load_timeout_s=30)) as cache:
            hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
            folder.spoil(**{Path(list(hit.keys(0, 6))[2]).name: {"open": errno.EMFILE}})
            with pytest.raises(StoreError, match="Too many open files"):
                cache.load(hit, target.view(), 0, 96)
            folder.spoil()
            cache.load(hit, target.view(), 0, 96)
            assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_what_was_wrong_once_only_is_no_damage(tmp_path: Path) -> None:
    """A byte that is another one when it is read again: the load fails, and nobody's object is removed."""
    with hanging_folder(tmp_path) as folder:
        url = f"file://{folder.path}/store"
        fill(url)
        with KVCache.open(Config(url=url, lookup_timeout_s=30, load_timeout_s=30)) as cache:
            hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
            folder.spoil(**{Path(list(hit.keys(0, 6))[2]).name: {"flip": 3000}})
            with pytest.raises(LoadError, match="1 of 6 objects changed while they were read"):
                cache.load(hit, target.view(), 0, 96)
            assert target.holds_at_most(Cache(namespace(), 96, seed=1), (0, 1))
            cache.load(hit, target.view(), 0, 96)
            assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_load_that_was_given_up_writes_nothing_more(tmp_path: Path, threads: int) -> None:
    """It has written two chunks, hangs in the third, and goes on when the engine may have other plans."""
    with hanging_folder(tmp_path) as folder:
        config = Config(url=f"file://{folder.path}/store", load_timeout_s=0.7, lookup_timeout_s=30, threads=threads)
        fill(config.url)
        with KVCache.open(config) as cache:
            hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
            folder.spoil(**{Path(list(hit.keys(0, 6))[2]).name: {"stall": 2}})
            with pytest.raises(StoreTimeout):
                cache.load(hit, target.view(), 0, 96)
            before = [bytes(memory) for memory in target.memory]
            assert target.holds_at_most(Cache(namespace(), 96, seed=1), (0, 1) if threads == 1 else (0, 1, 3, 4, 5))
            folder.spoil()
            deadline = time.monotonic() + 20
            while cache._in_this_process().loads.hanging:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert [bytes(memory) for memory in target.memory] == before
            cache.load(hit, target.view(), 0, 96)
            assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_a_closed_gate_lets_nothing_pass(tmp_path: Path) -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    put(tmp_path, container, digest, written)
    reader, gate = Reader(container, digest), bulk.Gate()
    gate.close()
    gate.close()
    with opened(tmp_path) as folder:
        assert not reader.load(folder, gate)
        assert reader.untouched
        assert reader.load(folder)


def test_after_a_gate_is_closed_a_running_load_has_stopped_writing(tmp_path: Path) -> None:
    """Closed at any time of a load of many objects, by another thread."""
    container = Container(namespace(planes={"k": 512, "v": 512}, chunk_tokens=64), Extent(0, 4, 0, 3))
    chunks = [stored(container, chunk) for chunk in range(12)]
    for written, digest in chunks:
        put(tmp_path, container, digest, written)
    geometry, tokens = container.namespace.geometry, container.namespace.chunk_tokens
    target = bytearray(len(chunks) * container.data_bytes)
    pool = format("canonical").pool(
        geometry, container.extent, page=tokens, blocks=len(chunks), buffers=[Buffer.of(target)], strides={}
    )
    memory = scratch(2 * (container.object_bytes + 64))
    partly = 0
    with opened(tmp_path) as folder:
        for turn in range(60):
            target[:] = bytes(len(target))
            view = pool.view(array("q", range(len(chunks))), 0, len(chunks) * tokens)
            plan = make_plan(passing(container, memory, 0, view.tokens), view)
            batch = bulk.Batch(container, container.extent, plan, [digest for _, digest in chunks])
            gate = bulk.Gate()
            loading = threading.Thread(target=bulk.load, args=([batch], folder, memory, 2, gate))
            loading.start()
            time.sleep(turn * 0.0001)
            gate.close()
            seen = bytes(target)
            loading.join()
            assert target == seen
            empty = bytes(container.data_bytes)
            found = [seen[i * len(empty) : (i + 1) * len(empty)] for i in range(len(chunks))]
            assert all(
                got in (empty, written[container.header_bytes :])
                for got, (written, _) in zip(found, chunks, strict=True)
            )
            partly += 0 < found.count(empty) < len(chunks)
    assert partly, "no gate was closed in the middle of a load: this test shows nothing"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = None
    for turn in range(4):
        store = tmp_path / str(turn)
        fill(f"file://{store}")
        with KVCache.open(f"file://{store}") as cache:
            hit = cache.lookup(namespace(), TOKENS)
            for key in list(hit.keys(0, 6))[turn:]:
                spoil.flip_byte(store / key)
            with pytest.raises(LoadError):
                cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
        now = len(os.listdir("/proc/self/fd"))
        before = now if before is None else before
        assert now == before


@pytest.mark.parametrize("overlapping", [True, False])
def test_objects_that_overlap_are_loaded_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlapping: bool
) -> None:
    """Else numbers of one writer could end up under the scales of another."""
    one, seen, real = namespace(layers_per_shard=1), [], bulk.load
    halves = [Extent(0, 4, 0, 2), Extent(0, 2, 0, 3), Extent(2, 4, 2, 3)]
    if not overlapping:
        halves = [Extent(0, 4, 0, 2), Extent(0, 4, 2, 3)]

    def counted(batches: Sequence[bulk.Batch], folder: int, memory: memoryview, threads: int, gate: bulk.Gate):  # type: ignore[no-untyped-def]
        seen.append((threads, len(batches)))
        return real(batches, folder, memory, threads, gate)

    monkeypatch.setattr(bulk, "load", counted)
    with KVCache.open(Config(url=f"file://{tmp_path}/store", threads=3)) as cache:
        for extent in halves:
            handle = cache.store(one, TOKENS, Cache(one, 96, seed=1).view(), 0, 96, extent=extent)
            assert handle.committed.wait(10)
            assert handle.stored == 6
        target = Cache(one, 96)
        cache.load(cache.lookup(one, TOKENS), target.view(), 0, 96)
        assert target.same_tokens(Cache(one, 96, seed=1), 0, 96)
    assert seen == [(1, 3) if overlapping else (3, 2)]


def test_a_load_that_was_given_up_reads_nothing_more(tmp_path: Path) -> None:
    with hanging_folder(tmp_path) as folder:
        config = Config(url=f"file://{folder.path}/store", load_timeout_s=0.7, lookup_timeout_s=30)
        fill(config.url)
        with KVCache.open(config) as cache:
            hit = cache.lookup(namespace(), TOKENS)
            running, asked = cache._in_this_process(), []
            running.store.get_many = asked.append  # type: ignore[method-assign,assignment]
            folder.spoil(**{Path(next(iter(hit.keys(0, 6)))).name: {"stall": 2}})
            with pytest.raises(StoreTimeout):
                cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
            deadline = time.monotonic() + 20
            while running.loads.hanging:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert asked == []
