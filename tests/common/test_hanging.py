"""A store that hangs, for real: nobody waits for it, and it is used again when it answers."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import StoreTimeout
from tests.common.kv import TOKENS, Cache, fill, namespace
from tests.hanging import hanging_folder


def test_lookups_and_loads_end_at_their_deadlines(tmp_path: Path) -> None:
    with hanging_folder(tmp_path) as folder:
        config = Config(url=f"file://{folder.path}/store", lookup_timeout_s=5, load_timeout_s=1)
        fill(config.url)
        cache = KVCache.open(config)
        hit = cache.lookup(namespace(), TOKENS)
        assert hit.tokens == 96
        target = Cache(namespace(), 96)
        folder.freeze()
        began = time.monotonic()
        with pytest.raises(StoreTimeout, match="within 1 s"):
            cache.load(hit, target.view(), 0, 96)
        assert 0.9 < time.monotonic() - began < 4
        began = time.monotonic()
        for _ in range(100):  # the first has shown that it hangs
            with pytest.raises(StoreTimeout, match="hangs"):
                cache.lookup(namespace(), TOKENS)
        assert time.monotonic() - began < 2  # not 100 times the deadline, nor once
        assert target.untouched()
        folder.thaw()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert cache.lookup(namespace(), TOKENS) == hit
                break
            except StoreTimeout:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert target.untouched(), "the late thread wrote into the engine's memory"
        with KVCache.open(Config(url=config.url, lookup_timeout_s=30)) as patient:
            patient.load(hit, target.view(), 0, 96)
        assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)
        assert cache.close(30)


def test_a_submitted_load_is_given_up_while_its_file_hangs(tmp_path: Path) -> None:
    with hanging_folder(tmp_path) as folder:
        config = Config(url=f"file://{folder.path}/store", lookup_timeout_s=30, load_timeout_s=60)
        fill(config.url)
        cache = KVCache.open(config)
        hit, targets = cache.lookup(namespace(), TOKENS), [Cache(namespace(), 96) for _ in range(3)]
        folder.freeze()
        handles = [cache.submit_load(hit, target.view(), 0, 96) for target in targets]
        time.sleep(0.2)
        for handle in handles[:2]:  # one that hangs, one behind it
            assert not handle.done()
            handle.cancel()
            assert handle.done()
        folder.thaw()
        assert handles[2].wait(30)
        assert handles[2].error is None
        assert [target.untouched() for target in targets] == [True, True, False]
        assert cache.close(30)


def test_stores_are_dropped_and_never_waited_for(tmp_path: Path) -> None:
    with hanging_folder(tmp_path) as folder:
        cache = KVCache.open(Config(url=f"file://{folder.path}/store", lookup_timeout_s=0.2))
        fill(cache.config.url)
        folder.freeze()
        source = Cache(namespace(), 96, seed=2)
        for attempt in range(20):
            began = time.monotonic()
            handle = cache.store(namespace(), [attempt, *TOKENS[1:]], source.view(), 0, 96)
            assert time.monotonic() - began < 2
            assert handle.copied.is_set()
            assert isinstance(handle.error, StoreTimeout)
            assert handle.dropped == 6
        assert cache.stats["drops"] == 120
        began = time.monotonic()
        cache.close(0.2)
        assert time.monotonic() - began < 2


def test_a_process_with_a_stuck_thread_can_exit(tmp_path: Path) -> None:
    """Frozen before anything was opened; the process looks up, queues a write behind a freeze, and ends by itself."""
    with hanging_folder(tmp_path) as folder:
        folder.freeze()
        program = f"""
            from kvlingua.common.cache import KVCache
            from kvlingua.common.config import Config
            from kvlingua.common.errors import StoreTimeout
            from tests.common.kv import Cache, namespace
            cache = KVCache.open(Config(url="file://{folder.path}/store", lookup_timeout_s=0.2))
            try:
                cache.lookup(namespace(), list(range(96)))
            except StoreTimeout as error:
                print("timeout:", error)
            cache._in_this_process().queue.submit("touch", lambda: cache._in_this_process().store.touch_chain(
                ["{"0" * 64}/namespace.json"]))
            print("done", flush=True)
        """
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("timeout: the store didn't finish a lookup within 0.2 s\ndone")
        assert time.monotonic() - began < 30
