"""Two tensor-parallel ranks: what one rank alone has stored two of them reuse, and the other way round; and when one of
the two can't load its heads, both compute. SGLang itself checks that its ranks do the same (its consensus checker)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask, Reply
from kvlingua.common.identity.chain import chain_digests
from tests.engines.adapters import ALL as MODULES
from tests.engines.adapters import random_adapter
from tests.engines.sglang.conftest import Launcher
from tests.engines.sglang.in_engine import run
from tests.engines.sglang.lora import ENABLED, unpinned, wait_until_known, with_adapter
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text, whole
from tests.spoil import flip_byte, negate_v

ONE, TWO, MISSING, FLIPPED, NEGATED = (text(seed) for seed in range(120, 125))
ALL = [ONE, TWO, MISSING, FLIPPED, NEGATED]
ADAPTED, ADAPTED_BY_TWO = text(125), text(126)  # asked with an adapter only
PAGE = 16
RANKS: dict[str, dict[str, Any]] = {
    "engine": {"tp_size": 2},
    "settings": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"},
}


def tokens(reply: Reply) -> list[list[int]]:
    return [answer.tokens for answer in reply.answers]


def lora(adapter: Path) -> dict[str, dict[str, Any]]:
    """How an engine is launched that has this adapter."""
    return {"engine": {**ENABLED, "lora_paths": {"it": str(adapter)}}, "settings": unpinned()}


def of_heads(store: Path, ask: Ask, heads: str) -> list[Path]:
    return [next(store.glob(f"*/{digest.hex()}-h{heads}-*")) for digest in chain_digests(ask.prompt, CHUNK)]


@pytest.fixture(scope="module")
def cold(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[int]]]:
    """A store with one text by one rank, and the right answers to all, which that engine gives."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    adapter = random_adapter(store.parent / "adapter", 1, MODULES, scale=0.3)
    with launch(store, **lora(adapter)) as driver:
        wait_until_known(driver, adapter)
        answers = {id(ask): driver.generate(ask).answers[0].tokens for ask in ALL}
        adapted = [ADAPTED, ADAPTED_BY_TWO]
        answers |= {id(ask): driver.generate(with_adapter(ask, "it")).answers[0].tokens for ask in adapted}
        driver.wait_objects(whole(*ALL, *adapted))
    kept = objects_of(store, ONE) + objects_of(store, ADAPTED)
    for path in store.rglob("*.safetensors"):
        if path not in kept:
            path.unlink()
    return store, answers


@pytest.fixture(scope="module")
def two(launch: Launcher, cold: tuple[Path, dict[int, list[int]]]) -> Iterator[Driver]:
    adapter = cold[0].parent / "adapter"
    settings = lora(adapter)
    settings = {name: settings[name] | RANKS[name] for name in settings}
    with launch(cold[0], **settings) as driver:
        wait_until_known(driver, adapter, times=2)
        yield driver


def test_two_ranks(two: Driver, cold: tuple[Path, dict[int, list[int]]], launch: Launcher, tmp_path: Path) -> None:
    store, right = cold

    def ask(driver: Driver, one: Ask, reused: int) -> None:
        assert driver.call("flush_cache")
        reply = driver.generate(one)
        assert tokens(reply) == [right[id(one)]]
        assert (reply.reused, reply.local, reply.computed) == (reused, 0, length(one) - reused)

    ask(two, ONE, taken(PAGE, ONE))  # by one rank, for two
    for one in ALL:
        if one is not ONE:
            ask(two, one, 0)
    two.wait_objects(chunks(ONE, ADAPTED) + 2 * whole(TWO, MISSING, FLIPPED, NEGATED))
    for heads in ("0-2", "2-4"):
        for one in (TWO, MISSING, FLIPPED, NEGATED):
            assert len(of_heads(store, one, heads)) == chunks(one)
    ask(two, TWO, taken(PAGE, TWO))  # by two, for two

    of_heads(store, MISSING, "2-4")[3].unlink()
    ask(two, MISSING, 3 * CHUNK)  # one rank has less: both take as much
    assert flip_byte(of_heads(store, FLIPPED, "2-4")[5])
    failed = two.metric("kvlingua_refusals_total", adapter="sglang")
    ask(two, FLIPPED, 0)  # one rank fails: both compute
    assert two.metric_reaches("kvlingua_refusals_total", failed + 2, adapter="sglang"), "both ranks say so"
    ask(two, FLIPPED, taken(PAGE, FLIPPED))  # and it was stored anew

    apart = tmp_path / "apart"
    for path in of_heads(store, NEGATED, "0-2"):
        (apart / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(apart / path.parent.name / path.name)
    assert negate_v(apart) == chunks(NEGATED)
    for path in apart.rglob("*.safetensors"):
        path.rename(store / path.parent.name / path.name)
    assert two.call("flush_cache")
    reply = two.generate(NEGATED)
    assert reply.reused == taken(PAGE, NEGATED)
    assert tokens(reply) != [right[id(NEGATED)]], "the stored values are what is used"

    assert two.call("flush_cache")
    together = [ONE, TWO, MISSING, FLIPPED]
    reply = two.generate(*together, *together)
    assert tokens(reply) == [right[id(one)] for one in together] * 2

    def ask_adapted(one: Ask, reused: int) -> None:
        assert two.call("flush_cache")
        reply = two.generate(with_adapter(one, "it"))
        assert tokens(reply) == [right[id(one)]]
        assert (reply.reused, reply.local, reply.computed) == (reused, 0, length(one) - reused)

    objects = two.objects()
    ask_adapted(ADAPTED, taken(PAGE, ADAPTED))
    ask_adapted(ADAPTED_BY_TWO, 0)
    two.wait_objects(objects + 2 * whole(ADAPTED_BY_TWO) + 2 * (whole(ADAPTED) - chunks(ADAPTED)))
    ask_adapted(ADAPTED_BY_TWO, taken(PAGE, ADAPTED_BY_TWO))

    with launch(store) as driver:  # by two ranks, for one
        ask(driver, TWO, taken(PAGE, TWO))
        ask(driver, FLIPPED, taken(PAGE, FLIPPED))


def test_what_one_rank_lacks_both_do_without(tmp_path: Path) -> None:
    """[a load was begun, tokens promised afterwards, tokens' memory freed, held]; of an adapter [stored, promised]."""
    random_adapter(tmp_path / "adapter", 1)
    found = run("ranks_process.py", str(MODEL), str(tmp_path))
    assert found["0"] == {
        "same": [True, False, False, False],
        "one has no memory": [False, 0, 128, 0],
        "both load": [True, 128, 0, 128],
        "one fails": [True, 0, 128, 0],
        "one has less": 64,
        "one knows no digest": [2, 0],
        "both know it": [0, 128],
    }
    assert found["1"] == found["0"] | {
        "one has no memory": [False, 0, 0, 0],
        "one knows no digest": [0, 0],
        "both know it": [2, 128],
    }
