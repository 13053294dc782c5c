"""What a cache tells its store about use: what was loaded stays, chains go from the tail, nothing is written twice."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvlingua.common import loading, storing
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.identity.extents import candidates
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.view import View
from tests import spoil
from tests.common.kv import CHUNK, Cache, namespace


def prompt(first: int, chunks: int = 3) -> list[int]:
    return [first, *range(1, chunks * CHUNK)]


def put(cache: KVCache, tokens: list[int]) -> None:
    handle = cache.store(namespace(), tokens, Cache(namespace(), len(tokens), seed=tokens[0]).view(), 0, len(tokens))
    assert handle.committed.wait(10)
    assert handle.error is None


def load(cache: KVCache, tokens: list[int]) -> None:
    hit = cache.lookup(namespace(), tokens)
    assert hit.tokens == len(tokens)
    cache.load(hit, Cache(namespace(), len(tokens)).view(), 0, len(tokens))
    assert cache.flush(10)


@pytest.mark.parametrize("used", [1, 2])
def test_what_was_loaded_outlives_what_was_not(tmp_path: Path, used: int) -> None:
    """Room for three prompts and a half; the oldest of two stays if it is the one that was loaded."""
    with KVCache.open(f"file://{tmp_path}/measure") as cache:
        put(cache, prompt(1))
    size = sum(path.stat().st_size for path in spoil.objects(tmp_path / "measure"))
    with KVCache.open(Config(url=f"file://{tmp_path}/store", max_bytes=int(3.5 * size))) as cache:
        for first in (1, 2):
            put(cache, prompt(first))
        load(cache, prompt(used))
        for first in (3, 4):
            put(cache, prompt(first))
        assert cache.lookup(namespace(), prompt(used)).tokens == 3 * CHUNK
        assert cache.lookup(namespace(), prompt(3 - used)).tokens < 3 * CHUNK


def test_a_longer_prompt_renews_the_whole_chain(tmp_path: Path) -> None:
    """Times fall from head to tail, across what was there before and what is new."""
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        for chunks in (2, 5):
            put(cache, prompt(1, chunks))
        keys = list(cache.lookup(namespace(), prompt(1, 5)).keys(0, 5))
    times = [(tmp_path / "store" / key).stat().st_mtime_ns for key in keys]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 5
    assert times[0] - times[4] < 1_000_000, "the head was not renewed with its tail"


def test_chunks_that_wait_to_be_written_are_not_stored_again(tmp_path: Path) -> None:
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        gate, tokens = threading.Event(), prompt(1)
        cache._in_this_process().queue.submit("touch", lambda: gate.wait(30) and None)
        source = Cache(namespace(), 48, seed=1)
        assert cache.store(namespace(), tokens, source.view(), 0, 48).stored == 3
        assert cache.store(namespace(), tokens, source.view(), 0, 48).stored == 0
        assert cache.store(namespace(), [*tokens, *range(16)], Cache(namespace(), 64, seed=1).view(), 0, 64).stored == 1
        gate.set()
        assert cache.flush(10)
        assert cache.lookup(namespace(), tokens).tokens == 48


def test_a_miss_costs_one_question_and_a_hit_few_names() -> None:
    """One rank of two asks for what it holds in every split of 4 heads, then for what a writer of all has stored."""
    part = Extent(0, 2, 0, 3)
    names = len(candidates(namespace().grid, part))
    assert names == 4  # all heads, a half, two quarters
    with KVCache.open("memory://") as cache:
        store, asked = cache._in_this_process().store, []
        real = store.exists_many

        def counted(keys: Sequence[str]) -> list[bool]:
            asked.append(len(keys))
            return real(keys)

        store.exists_many = counted  # type: ignore[method-assign]
        assert cache.lookup(namespace(), prompt(1), extent=part).tokens == 0
        assert asked == [names]
        put(cache, prompt(1, 6))
        asked.clear()
        assert cache.lookup(namespace(), prompt(1, 6), extent=part).tokens == 96
        assert asked == [names, 4, 1]  # all chunks but the first by one name each
        asked.clear()
        assert cache.lookup(namespace(), [*prompt(1, 6), *range(160)], extent=part).tokens == 96
        assert asked == [names, 4, 11, names]


def test_copies_use_the_threads_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    for module in (loading, storing):
        real = module.convert

        def counted(source: View, target: View, *, threads: int = 1, real=real, **rest) -> None:  # type: ignore[no-untyped-def]
            seen.append(threads)
            real(source, target, threads=threads, **rest)

        monkeypatch.setattr(module, "convert", counted)
    with KVCache.open(Config(url="memory://", threads=3)) as cache:
        put(cache, prompt(1))
        load(cache, prompt(1))
    assert seen == [3, 3]
