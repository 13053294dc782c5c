"""Layers with block tables of their own: what is stored of them is what a cache with one table would have stored, and
what is loaded goes where there are blocks for it."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvlingua.adapters.vllm.groups import Groups, group_of_layers, held_from
from kvlingua.adapters.vllm.views import pool_of
from kvlingua.common import storing
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import LoadError, UnsupportedError
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.namespace import Namespace
from tests.common.samples import namespace

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


def test_a_slow_store_is_not_waited_for(cache: KVCache, spaces: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's blocks are copied at once. What is stored later is what they held then; beyond a bound the oldest is given
    up."""
    release, began, submit = threading.Event(), threading.Event(), storing.store

    def slow(*arguments: Any) -> None:
        began.set()
        release.wait(30.0)
        submit(*arguments)

    monkeypatch.setattr(storing, "store", slow)
    source = tensors(spaces, 1)
    held = groups(spaces, source)
    texts = [[number, *IDS[1:]] for number in range(7)]
    for text in texts:
        held.store(cache, spaces, (FULL, WINDOWED), 0, len(IDS), tuple(chain_digests(text, CHUNK, b"")))
        assert began.wait(10.0)
        for tensor in source:
            tensor += 1
    release.set()
    assert cache.flush(10.0)
    found = [cache.lookup(spaces, text).tokens for text in texts]
    assert found == [0, 0, 0, *[len(IDS)] * 4]
    assert cache.stats["drops"] == 3 * len(IDS) // CHUNK

    target, right = tensors(spaces), tensors(spaces, 1)
    handle = groups(spaces, target).load(cache, cache.lookup(spaces, texts[4]), (FULL, WINDOWED), 0, len(IDS))
    assert handle.wait(10.0)
    for layer, group in enumerate(GROUPS):
        blocks = list((FULL, WINDOWED)[group])
        for _ in range(4):
            right[layer] += 1
        assert torch.equal(target[layer][blocks], right[layer][blocks])


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
