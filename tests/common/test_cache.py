"""The facade over real stores: what is stored comes back to the byte, in other places, and only that."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError, KVLinguaError, LayoutError, LoadError, StoreError, UnsupportedError
from kvlingua.common.guard import capture
from kvlingua.common.identity.chain import chain_digests
from kvlingua.layouts.geometry import Extent
from tests import spoil
from tests.common.kv import CHUNK, Cache, namespace

TOKENS = list(range(1000, 1100))  # 6 whole chunks of 16, and 4 more


def filled(url: str, seed: int = 1, **config: object) -> KVCache:
    """A cache in which all of TOKENS is stored."""
    cache = KVCache.open(Config(url=url, **config))  # type: ignore[arg-type]
    handle = cache.store(namespace(), TOKENS, Cache(namespace(), 100, seed=seed).view(), 0, 100)
    assert handle.copied.is_set()
    assert handle.committed.wait(10)
    assert (handle.stored, handle.dropped, handle.error) == (6, 0, None)
    return cache


def test_what_was_stored_is_found_and_loaded(url: str) -> None:
    with filled(url) as cache:
        hit = cache.lookup(namespace(), TOKENS)
        assert hit.tokens == 96
        target = Cache(namespace(), 100)
        cache.load(hit, target.view(0, 96), 0, 96)
        assert target.same_tokens(Cache(namespace(), 100, seed=1), 0, 96)
        assert target.untouched(96)
        assert cache.flush(10)
        stats = cache.stats
    assert (stats["lookups"], stats["hits"], stats["tokens_reused"], stats["tokens_stored"]) == (1, 1, 96, 96)


def test_only_the_longest_run_is_a_hit(url: str) -> None:
    with filled(url) as cache:
        assert cache.lookup(namespace(), TOKENS[:15]).tokens == 0
        assert cache.lookup(namespace(), TOKENS[:16]).tokens == 16
        assert cache.lookup(namespace(), [*TOKENS[:47], 7, *TOKENS[48:]]).tokens == 32
        assert cache.lookup(namespace(), [*TOKENS, *range(500)]).tokens == 96
        assert cache.lookup(namespace(), TOKENS[1:]).tokens == 0
        assert cache.lookup(namespace(), []).tokens == 0


def test_another_identity_is_a_miss(url: str) -> None:
    with filled(url) as cache:
        assert cache.lookup(namespace(), TOKENS).tokens == 96
        assert cache.lookup(namespace(), TOKENS, seed=b"s" * 32).tokens == 0
        for other in (
            {"fingerprint": "other"},
            {"rope": {"theta": 5e5, "rotary_dim": 8}},
            {"compute_dtype": "float16"},
            {"lora": "x"},
        ):
            assert cache.lookup(namespace(**other), TOKENS).tokens == 0


def test_digests_may_be_given(url: str) -> None:
    with filled(url) as cache:
        digests = chain_digests(TOKENS, CHUNK)
        assert cache.lookup(namespace(), TOKENS, digests=digests) == cache.lookup(namespace(), TOKENS)


def test_what_is_stored_is_not_stored_again(url: str) -> None:
    with filled(url) as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 100, seed=2).view(), 0, 100)
        assert handle.committed.wait(10)
        assert (handle.stored, handle.dropped) == (0, 0)
        longer = TOKENS + list(range(60))
        handle = cache.store(namespace(), longer, Cache(namespace(), 160, seed=1).view(), 0, 160)
        assert handle.committed.wait(10)
        assert handle.stored == 4
        target = Cache(namespace(), 160)
        cache.load(cache.lookup(namespace(), longer), target.view(), 0, 160)
        assert target.same_tokens(Cache(namespace(), 160, seed=1), 96, 160)


def test_a_part_of_a_prompt_is_stored_in_whole_chunks(url: str) -> None:
    with KVCache.open(url) as cache:
        everything = Cache(namespace(), 100, seed=1)
        assert cache.store(namespace(), TOKENS, everything.view(0, 40), 0, 40).stored == 2
        assert cache.store(namespace(), TOKENS, everything.view(25, 70), 25, 70).stored == 2  # chunks 2 and 3
        assert cache.store(namespace(), TOKENS, everything.view(70, 75), 70, 75).stored == 0
        assert cache.flush(10)
        hit = cache.lookup(namespace(), TOKENS)
        assert hit.tokens == 64
        target = Cache(namespace(), 64)
        cache.load(hit, target.view(), 0, 64)
        assert target.same_tokens(everything, 0, 64)


def test_the_source_may_change_after_store_returns(url: str) -> None:
    with KVCache.open(url) as cache:
        source = Cache(namespace(), 96, seed=1)
        handle = cache.store(namespace(), TOKENS, source.view(), 0, 96)
        for memory in source.memory:
            memory[:] = bytes(len(memory))
        assert handle.committed.wait(10)
        target = Cache(namespace(), 96)
        cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
        assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_a_hit_never_promises_more_than_can_be_verified(tmp_path: Path, way: str) -> None:
    """In bulk there is memory for one object at a time, else for all of a load."""
    url = f"file://{tmp_path}/store"
    with filled(url) as roomy:
        whole = roomy.lookup(namespace(), TOKENS)
        assert whole.tokens == 96
    object_bytes = spoil.objects(tmp_path / "store")[0].stat().st_size
    with KVCache.open(Config(url=url, queue_bytes=3 * (object_bytes + 64))) as cache:
        hit = cache.lookup(namespace(), TOKENS)
        assert hit.tokens == (96 if way == "in bulk" else 48)
        cache.load(hit, Cache(namespace(), hit.tokens).view(), 0, hit.tokens)
    room = object_bytes // 2 if way == "in bulk" else 3 * (object_bytes + 64)
    with KVCache.open(Config(url=url, queue_bytes=room)) as cache:
        target = Cache(namespace(), 96)
        with pytest.raises(LoadError, match="queue_bytes"):
            cache.load(whole, target.view(), 0, 96)
        assert target.untouched()
        assert cache.lookup(namespace(), TOKENS).tokens == (0 if way == "in bulk" else 48)


def test_a_full_queue_drops_the_tail_and_counts(tmp_path: Path) -> None:
    with KVCache.open(Config(url=f"file://{tmp_path}/store", queue_bytes=40000)) as cache:
        handle = cache.store(namespace(), TOKENS, Cache(namespace(), 100, seed=1).view(), 0, 100)
        assert handle.committed.wait(10)
        assert handle.stored > 0
        assert handle.dropped == 6 - handle.stored > 0
        assert cache.stats["drops"] == handle.dropped
        assert cache.lookup(namespace(), TOKENS).tokens == handle.stored * CHUNK


def test_what_is_no_view_or_no_plain_leave_is_refused(url: str) -> None:
    with filled(url) as cache:
        hit, target = cache.lookup(namespace(), TOKENS), Cache(namespace(), 96)
        for into in (target.pool, None):
            with pytest.raises(LayoutError, match=r"expected a View: pool.view\(table, start, stop\)"):
                cache.load(hit, into, 0, 96)  # type: ignore[arg-type]
            with pytest.raises(LayoutError, match=r"expected a View: pool.view\(table, start, stop\)"):
                cache.store(namespace(), TOKENS, into, 0, 96)  # type: ignore[arg-type]
        for leave in ("no", 1):
            with pytest.raises(LayoutError, match="allow_lossy is True or False, not"):
                cache.load(hit, target.view(), 0, 96, allow_lossy=leave)  # type: ignore[arg-type]
        assert target.untouched()


def test_roles_are_kept(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    source = Cache(namespace(), 100, seed=1)
    with KVCache.open(Config(url=url, role="consumer")) as consumer:
        handle = consumer.store(namespace(), TOKENS, source.view(), 0, 100)
        assert handle.copied.is_set()
        assert handle.committed.is_set()
        assert handle.stored == 0
    assert not (tmp_path / "store").exists()
    with filled(url, role="producer") as producer:
        assert producer.lookup(namespace(), TOKENS).tokens == 0
    with KVCache.open(Config(url=url, role="consumer")) as consumer:
        assert consumer.lookup(namespace(), TOKENS).tokens == 96


def test_what_does_not_fit_is_refused_before_anything_happens(url: str) -> None:
    with filled(url) as cache:
        hit = cache.lookup(namespace(), TOKENS)
        target = Cache(namespace(), 100)
        with pytest.raises(LoadError, match="not within the 96 tokens"):
            cache.load(hit, target.view(), 0, 100)
        with pytest.raises(LayoutError, match="don't fit a view of 100 tokens"):
            cache.load(hit, target.view(), 0, 96)
        with pytest.raises(LayoutError, match="of another model than the target: v with width 12 and 8"):
            cache.load(hit, Cache(namespace(planes={"k": 8, "v": 8}), 96).view(), 0, 96)
        part = cache.lookup(namespace(), TOKENS, extent=Extent(0, 2, 0, 3))
        with pytest.raises(LayoutError, match="the lookup was for"):
            cache.load(part, target.view(0, 96), 0, 96)
        with pytest.raises(LayoutError, match="don't fit"):
            cache.store(namespace(), TOKENS, target.view(), 0, 96)
        with pytest.raises(UnsupportedError, match="layers"):
            cache.store(namespace(), TOKENS, target.view(), 0, 100, extent=Extent(0, 4, 0, 2))
        assert target.untouched()


def test_a_closed_cache_says_so(url: str) -> None:
    cache = filled(url)
    assert cache.close()
    with pytest.raises(StoreError, match="closed"):
        cache.lookup(namespace(), TOKENS)
    assert cache.flush(1)


def test_a_wrong_url_is_told_at_open() -> None:
    with pytest.raises(ConfigError, match="no store is known"):
        KVCache.open("s3://bucket")


def test_the_nearest_namespace_and_its_differences(url: str) -> None:
    with filled(url) as cache:
        assert cache.nearest(namespace()) is None
        other = namespace(compute_dtype="float16", lora="x")
        found = cache.nearest(other)
        assert found is not None
        assert found[0] == namespace()
        assert found[1] == ["compute_dtype: float16 here, float32 there", "lora: x here, null there"]
        cache.store(other, TOKENS, Cache(other, 100, seed=1).view(), 0, 100)
        assert cache.flush(10)
        found = cache.nearest(namespace(compute_dtype="float16"))
        assert found is not None
        assert len(found[1]) == 1


def test_threads_share_a_cache(url: str) -> None:
    """Readers load while writers store other prompts; memory for about two loads at once."""
    wrong: list[object] = []
    with filled(url, queue_bytes=300_000) as cache:
        golden = Cache(namespace(), 100, seed=1)

        def read() -> None:
            for _ in range(10):
                target = Cache(namespace(), 96)
                cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
                if any(
                    target.bytes_of(token, layer, plane, 3) != golden.bytes_of(token, layer, plane, 3)
                    for token in (0, 47, 95)
                    for layer in range(3)
                    for plane in range(2)
                ):
                    wrong.append("read")

        def write(number: int) -> None:
            source = Cache(namespace(), 100, seed=number)
            for turn in range(10):
                cache.store(namespace(), [number, turn, *TOKENS[2:]], source.view(), 0, 100)

        def kept(work: Callable[[], None]) -> None:
            outcome = capture(work)
            try:
                outcome()
            except KVLinguaError as error:
                wrong.append(error)

        works = [read, read, read, lambda: write(5), lambda: write(6)]
        threads = [threading.Thread(target=kept, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert cache.flush(10)
        for number in (5, 6):
            for turn in range(10):
                prompt = [number, turn, *TOKENS[2:]]
                hit = cache.lookup(namespace(), prompt)
                if hit.tokens:
                    target = Cache(namespace(), 100)
                    cache.load(hit, target.view(0, hit.tokens), 0, hit.tokens)
                    assert target.same_tokens(Cache(namespace(), 100, seed=number), 0, hit.tokens)


def test_a_closed_cache_leaves_no_thread_behind(url: str) -> None:
    """A thread that still runs while Python shuts down may be ended within C++, which aborts the process."""
    before = set(threading.enumerate())
    with filled(url) as cache:
        target = Cache(namespace(), 100)
        cache.load(cache.lookup(namespace(), TOKENS), target.view(0, 96), 0, 96)
        assert {thread.name for thread in set(threading.enumerate()) - before} >= {"kvlingua-load", "kvlingua-write"}
    assert not set(threading.enumerate()) - before
