"""When vLLM is told that loads and copies are over, which it must hear once and not too early."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlingua.adapters.vllm import transfers
from kvlingua.adapters.vllm.transfers import Loads, Stores
from kvlingua.common import storing
from kvlingua.common.cache import KVCache, LoadHandle, StoreHandle
from kvlingua.common.errors import LoadError
from kvlingua.common.guard import Guard
from tests.common.kv import Cache, namespace

TOKENS = list(range(96))


class Copying:
    """Copies out of an engine's memory begin (`began`) and don't end before `release` is set."""

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Event()


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copying]:
    found, gather = Copying(), storing._gather

    def slow(*arguments: object) -> None:
        found.began.set()
        found.release.wait(30)
        gather(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storing, "_gather", slow)
    yield found
    found.release.set()


@pytest.fixture
def cache(tmp_path: Path, copying: Copying) -> Iterator[KVCache]:
    with KVCache.open(f"file://{tmp_path}/store") as opened:
        yield opened
        copying.release.set()


def submit(cache: KVCache, first: int) -> StoreHandle:
    """Another text for every `first`."""
    tokens = [first, *TOKENS[1:]]
    return cache.submit_store(namespace(), tokens, Cache(namespace(), 96, seed=1).view(), 0, 96)


def stores(**handles: StoreHandle) -> Stores:
    found = Stores()
    for request_id, handle in handles.items():
        found.expect(request_id)
        found.add(request_id, handle)
    return found


def test_blocks_are_kept_until_they_are_copied(cache: KVCache, copying: Copying) -> None:
    handle = submit(cache, 1)
    kept = stores(a=handle)
    assert kept.over({"a", "unknown"}) == kept.over(set()) == set()
    copying.release.set()
    assert handle.copied.wait(10)
    assert kept.over(set()) == {"a"}
    assert kept.over({"a"}) == set(), "it is said once"


def test_a_request_that_still_runs_is_never_over(cache: KVCache, copying: Copying) -> None:
    copying.release.set()
    handle = submit(cache, 1)
    kept = stores(a=handle)
    assert handle.copied.wait(10)
    assert kept.over(set()) == set()
    assert kept.over({"a"}) == {"a"}


def test_nothing_is_read_of_blocks_that_vllm_takes(cache: KVCache, copying: Copying) -> None:
    """The copy that is under way is waited for; the one behind it isn't begun; neither is ever reported."""
    first, second = submit(cache, 1), submit(cache, 2)
    kept = stores(a=first, b=second)
    assert copying.began.wait(10)
    forgetting = threading.Thread(target=kept.forget, args=({"a", "b"},))
    forgetting.start()
    forgetting.join(0.1)
    assert forgetting.is_alive(), "a copy is under way"
    copying.release.set()
    forgetting.join(10)
    assert not forgetting.is_alive()
    assert first.copied.is_set()
    assert second.copied.is_set()
    assert kept.over({"a", "b"}) == set()
    assert cache.flush(10)
    assert (first.stored, second.stored) == (6, 0)
    assert cache.stats["drops"] == 6, "what was given up is counted"


def test_blocks_are_not_kept_for_a_slow_store(
    cache: KVCache, copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(cache, 1), submit(cache, 2)
    kept = stores(a=first, b=second)
    assert copying.began.wait(10)
    assert kept.over({"a", "b"}) == set()
    monkeypatch.setattr(transfers, "HOLD_S", -1.0)
    assert kept.over(set()) == {"b"}
    copying.release.set()
    assert first.copied.wait(10)
    assert kept.over(set()) == {"a"}


def test_an_end_in_good_order_waits_for_copies(
    cache: KVCache, copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(cache, 1), submit(cache, 2)
    kept = stores(a=first, b=second)
    assert copying.began.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(transfers, "HOLD_S", 0.01)
        kept.wait()  # no longer than that
    assert not first.copied.is_set()
    monkeypatch.setattr(transfers, "HOLD_S", 30.0)
    ending = threading.Thread(target=kept.wait)
    ending.start()
    copying.release.set()
    ending.join(10)
    assert not ending.is_alive()
    assert second.copied.is_set()
    kept.stop_all()
    assert cache.flush(10)
    assert (first.stored, second.stored) == (6, 6)


def failing(_: object) -> None:
    raise LoadError("damaged")


def test_loads_are_over_once_and_failed_ones_are_named() -> None:
    loads = Loads(Guard("vllm"))
    well, badly, pending = LoadHandle(lambda _: None), LoadHandle(failing), LoadHandle(lambda _: None)
    for request_id, handle in {"well": well, "badly": badly, "pending": pending}.items():
        loads.expect(request_id)
        loads.begun(request_id, handle)
    loads.expect("never begun")
    well.run()
    badly.run()
    assert loads.over(set()) == ({"well", "badly", "never begun"}, {"badly", "never begun"})
    assert loads.over(set()) == (set(), set())
    loads.cancel({"pending", "unknown"})
    assert loads.over({"pending"}) == ({"pending"}, {"pending"})


def test_the_blocks_of_failed_loads() -> None:
    """Of those alone, said once: what vLLM 0.28 is told of them."""
    handles = {name: LoadHandle(lambda gate: None) for name in ("well", "cancelled")}
    loads = Loads(Guard("vllm"))
    loads.expect("never begun", (1, 2))
    for number, (name, handle) in enumerate(handles.items()):
        loads.expect(name, range(10 * number + 10, 10 * number + 13))
        loads.begun(name, handle)
    assert loads.over(()) == ({"never begun"}, {"never begun"})
    assert loads.broken == {1, 2}
    handles["well"].run()
    loads.cancel(["cancelled"])
    assert loads.over(()) == ({"well", "cancelled"}, {"cancelled"})
    assert loads.broken == {20, 21, 22}
    assert loads.over(()) == (set(), set())
    assert loads.broken == set()
