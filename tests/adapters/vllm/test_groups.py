"""Layers with block tables of their own: what is stored of them is what a cache with one table would have stored, and
what is loaded goes where there are blocks for it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlingua.adapters.vllm import groups as groups_module
from kvlingua.adapters.vllm.groups import Groups, group_of_layers, held_from
from kvlingua.adapters.vllm.transfers import Loads
from kvlingua.adapters.vllm.views import pool_of
from kvlingua.common import storing
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.namespace import Namespace
from tests.common.samples import namespace
from tests.common.stuck import stuck

CHUNK, PAGE, BLOCKS, WINDOW = 64, 32, 40, 100
IDS = list(range(5 * CHUNK))
GROUPS = [0, 1, 1, 0]  # of four layers: the first and the last have full attention
WINDOWS = [None, WINDOW]


@pytest.fixture
def spaces() -> Namespace:
    return namespace(layers=len(GROUPS), layers_per_shard=len(GROUPS), chunk_tokens=CHUNK)


@pytest.fixture
def cache(tmp_path: Path) -> KVCache:
    return KVCache.open(Config(url=(tmp_path / "store").as_uri()))


def tensors(space: Namespace, seed: int | None = None) -> list[torch.Tensor]:
    k, v = space.geometry.numbers
    shape = (BLOCKS, space.kv_heads, PAGE, k.width + v.width)
    generator = torch.Generator().manual_seed(seed or 0)
    made = [torch.zeros(shape) if seed is None else torch.rand(shape, generator=generator) for _ in GROUPS]
    return [tensor.to(getattr(torch, space.kv_dtype)) for tensor in made]


def groups(space: Namespace, held: Sequence[torch.Tensor]) -> Groups:
    where = {"page": PAGE, "blocks": BLOCKS, "chunk_tokens": CHUNK}
    return Groups.of("vllm_cpu_vec", held, GROUPS, WINDOWS, space.geometry, **where)


FULL, WINDOWED = tuple(range(1, 11)), tuple(range(20, 30))


def test_what_is_stored_comes_back_where_there_are_blocks(cache: KVCache, spaces: Namespace) -> None:
    source = tensors(spaces, 1)
    digests = tuple(chain_digests(IDS, CHUNK, b""))
    groups(spaces, source).store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), digests)
    assert cache.flush(10.0)
    hit = cache.lookup(spaces, IDS)
    assert hit.tokens == len(IDS)

    stop = len(IDS) - PAGE
    first = (stop - WINDOW + 1) // PAGE  # the block that the window begins in
    table = (0,) * first + WINDOWED[first:]
    target = tensors(spaces)
    handle = groups(spaces, target).load(cache, hit, (FULL, table), 2 * PAGE, stop)
    assert handle.wait(10.0)
    assert handle.error is None
    pages = range(2, stop // PAGE)
    for layer, group in enumerate(GROUPS):
        blocks = [(FULL, table)[group][page] for page in pages]
        origin = [(FULL, WINDOWED)[group][page] for page in pages]
        for there, here in zip(blocks, origin, strict=True):
            if there:
                assert torch.equal(target[layer][there], source[layer][here])
        untouched = [number for number in range(BLOCKS) if number not in blocks or number == 0]
        assert not target[layer][untouched].any()


@pytest.mark.parametrize(
    ("full", "windowed"),
    [((0, *FULL[1:]), WINDOWED), (FULL, (0,) * 8 + WINDOWED[8:])],
    ids=["full attention", "a window too short"],
)
def test_blocks_that_are_missing(
    cache: KVCache, spaces: Namespace, full: tuple[int, ...], windowed: tuple[int, ...]
) -> None:
    """No request goes on with KV that was loaded nowhere."""
    held = groups(spaces, tensors(spaces, 1))
    held.store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), tuple(chain_digests(IDS, CHUNK, b"")))
    assert cache.flush(10.0)
    with pytest.raises(LoadError, match="no blocks"):
        held.load(cache, cache.lookup(spaces, IDS), (full, windowed), 0, len(IDS))


TEXTS = [[number, *IDS[1:]] for number in range(7)]
DIGESTS = [tuple(chain_digests(text, CHUNK, b"")) for text in TEXTS]


def test_a_slow_store_is_waited_for_once(cache: KVCache, spaces: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's blocks are copied at once. What is stored later is what they held then; what finds no room isn't."""
    release, began, store = threading.Event(), threading.Event(), storing.store

    def slow(*arguments: Any) -> None:
        began.set()
        release.wait(30.0)
        store(*arguments)

    monkeypatch.setattr(storing, "store", slow)
    source = tensors(spaces, 1)
    held = groups(spaces, source)
    for digests in DIGESTS:
        held.store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), digests)
        assert began.wait(10.0)
        for tensor in source:
            tensor += 1
    release.set()
    assert cache.flush(10.0)
    found = [cache.lookup(spaces, text).tokens for text in TEXTS]
    assert found == [len(IDS)] * 4 + [0] * 3
    assert cache.stats["drops"] == 3 * len(IDS) // CHUNK
    held.store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), DIGESTS[6])
    assert cache.flush(10.0)
    for text, changes in ((TEXTS[2], 2), (TEXTS[6], 7)):
        assert loaded(cache, spaces, text, tensors(spaces, 1), changes)


def loaded(cache: KVCache, space: Namespace, text: list[int], source: list[torch.Tensor], changes: int) -> bool:
    """Whether what is stored of a text is what these blocks held after so many changes."""
    target = tensors(space)
    handle = groups(space, target).load(cache, cache.lookup(space, text), (FULL, WINDOWED), 0, len(IDS))
    assert handle.wait(10.0)
    assert handle.error is None
    for tensor in source:
        for _ in range(changes):
            tensor += 1
    return all(
        torch.equal(target[layer][list((FULL, WINDOWED)[group])], source[layer][list((FULL, WINDOWED)[group])])
        for layer, group in enumerate(GROUPS)
    )


def test_memory_that_is_being_read_is_not_written(
    cache: KVCache, spaces: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of one chunk, which take turns in the same memory: stores wait for the copy that is under way."""
    gather = storing._gather

    def slowly(*arguments: Any) -> None:
        time.sleep(0.02)
        gather(*arguments)

    monkeypatch.setattr(storing, "_gather", slowly)
    monkeypatch.setattr(groups_module, "_SCRATCH_BYTES", 1)
    monkeypatch.setattr(groups_module, "_ROOM_WAIT_S", 10.0)
    source = tensors(spaces, 1)
    held = groups(spaces, source)
    for digests in DIGESTS:
        held.store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), digests)
        for tensor in source:
            tensor += 1
    assert cache.flush(30.0)
    assert cache.stats["drops"] == 0
    for number, text in enumerate(TEXTS):
        assert loaded(cache, spaces, text, tensors(spaces, 1), number)


@pytest.mark.usefixtures("one_by_one")
def test_a_request_that_is_aborted_gets_nothing_more(cache: KVCache, spaces: Namespace) -> None:
    """While the store is read: vLLM is told that it is over, and gives the blocks to others."""
    groups(spaces, tensors(spaces, 1)).store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), DIGESTS[0])
    assert cache.flush(10.0)
    hit = cache.lookup(spaces, TEXTS[0])
    began, release = stuck(cache)
    loads, target = Loads(Guard("vllm")), tensors(spaces)
    loads.expect("aborted")
    loads.begun("aborted", groups(spaces, target).load(cache, hit, (FULL, WINDOWED), 0, len(IDS)))
    assert began.wait(10.0)
    assert loads.over(set()) == (set(), set())
    loads.cancel({"aborted"})
    assert loads.over({"aborted"}) == ({"aborted"}, {"aborted"})
    release.set()
    behind = groups(spaces, tensors(spaces)).load(cache, hit, (FULL, WINDOWED), 0, len(IDS))
    assert behind.wait(10.0)
    assert behind.error is None
    assert not any(tensor.any() for tensor in target)


def test_from_where_on_all_have_blocks() -> None:
    assert held_from([FULL, WINDOWED], PAGE, 0, 320) == 0
    assert held_from([FULL, WINDOWED], PAGE, 70, 320) == 70
    assert held_from([FULL, (0, 0, 0, *WINDOWED)], PAGE, 70, 320) == 96
    assert held_from([(0, *FULL), (1, 0, *WINDOWED)], PAGE, 0, 320) == 64
    assert held_from([FULL, (1,) * 9 + (0,)], PAGE, 0, 320) == 320


def test_layers_and_groups() -> None:
    class Group:
        def __init__(self, *names: str) -> None:
            self.layer_names = names

    assert group_of_layers(["a", "b", "c"], [Group("a", "c"), Group("b")]) == [0, 1, 0]
    with pytest.raises(UnsupportedError):
        group_of_layers(["a", "b"], [Group("a")])


def test_layers_of_one_run_that_share_memory(spaces: Namespace) -> None:
    held = tensors(spaces)
    held[2] = held[1]
    with pytest.raises(UnsupportedError, match="share memory"):
        groups(spaces, held)
    held[2] = held[3]  # of another group, whose blocks are others
    groups(spaces, held)


def test_a_pool_alone_would_not_do(spaces: Namespace) -> None:
    held = tensors(spaces)
    held[1] = held[0]
    with pytest.raises(UnsupportedError, match="share memory"):
        pool_of("vllm_cpu_vec", held, spaces.geometry, page=PAGE, blocks=BLOCKS)
