"""From page to page: what SGLang stores at page 1, page 64 reuses and adds to, and page 16 reuses: beside its own
prefix cache, in prefills of chunks, with little room, under salts. The tokens are transformers'."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask, Reply
from kvlingua.common.identity.chain import chain_digests, request_seed
from tests.engines.reference import answer, answers
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text, whole
from tests.spoil import flip_byte, negate_v

BY_1 = [text(seed) for seed in range(40, 44)]  # read at page 1, together, in a prefill of chunks
BY_64 = [text(50, tokens=430), text(51)]
NEGATED, FLIPPED, CUT = text(60), text(61), text(62)  # by page 1 too, spoiled afterwards
EXACT = Ask(BY_1[0].prompt[: 2 * CHUNK])  # every token of it is stored
UNSEEN = text(70, max_tokens=60)
SALTS = [{"cache_salt": "red"}, {"extra_key": "red"}, {"cache_salt": "blue", "extra_key": "red"}]
CHUNKED = {"chunked_prefill_size": 128}
# Two requests at a time, and room for three documents: loading a fourth takes slots from the prefix cache.
CROWDED = {"max_running_requests": 2, "max_total_tokens": 1600, **CHUNKED}


def right(reply: Reply, *asks: Ask) -> bool:
    """Whether these are the tokens that are right."""
    return [answer.tokens for answer in reply.answers] == answers(*asks)


@pytest.fixture(scope="module")
def stored(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store filled at pages 1 and 64."""
    folder = tmp_path_factory.mktemp("stored") / "store"
    spoiled = [NEGATED, FLIPPED, CUT]
    with launch(folder, page=1, engine=CHUNKED) as driver:
        assert right(driver.generate(*BY_1, *spoiled), *BY_1, *spoiled)
        driver.wait_objects(chunks(*BY_1, *spoiled))
        assert driver.call("flush_cache")
        reply = driver.generate(EXACT)
        assert right(reply, EXACT)
        assert (reply.reused, reply.local, reply.computed) == (2 * CHUNK - 1, 0, 1), "one token is left to compute"
        assert driver.call("flush_cache")
        reply = driver.generate(*BY_1)
        assert right(reply, *BY_1)
        assert reply.computed == length(*BY_1) - taken(1, *BY_1)
        assert reply.reused + reply.local == taken(1, *BY_1), "the first tokens, alike in all texts, are loaded once"
        assert reply.local < 16
        for number, salt in enumerate(SALTS):
            reply = driver.generate(replace(BY_1[0], **salt))
            assert (reply.reused, reply.computed) == (0, length(BY_1[0])), f"{salt} hits what has another salt"
            # Also what was generated: SGLang kills its processes at the end, and what isn't written then is lost.
            driver.wait_objects(whole(*BY_1, *spoiled) + (number + 1) * whole(BY_1[0]))
    with launch(folder, page=64) as driver:
        reply = driver.generate(*BY_1)
        assert right(reply, *BY_1)
        assert (reply.reused, reply.computed) == (taken(64, *BY_1), length(*BY_1) - taken(64, *BY_1))
        assert right(driver.generate(*BY_64), *BY_64)
        everything = whole(*BY_1, *spoiled, *BY_64) + len(SALTS) * whole(BY_1[0])
        driver.wait_objects(everything)
    assert driver.objects() == everything, "whole chunks of prompts and what was generated, each once"
    return folder


@pytest.fixture(scope="module")
def driver(launch: Launcher, stored: Path) -> Iterator[Driver]:
    """Page 16 on a copy of the store, in which three documents are spoiled."""
    folder = stored.with_name("copy")
    shutil.copytree(stored, folder)
    apart = stored.with_name("apart")
    for path in objects_of(folder, NEGATED):
        (apart / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(apart / path.parent.name / path.name)
    assert negate_v(apart) == chunks(NEGATED)
    shutil.copytree(apart, folder, dirs_exist_ok=True)
    flip_byte(objects_of(folder, FLIPPED)[3])
    for path in objects_of(folder, CUT):
        path.write_bytes(path.read_bytes()[:1000])
    with launch(folder, page=16, engine=CROWDED) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(driver: Driver) -> None:
    """SGLang's own prefix cache holds nothing when a test begins."""
    assert driver.call("flush_cache")


def settle(driver: Driver) -> None:
    """Wait until the metrics show all that was counted up to now, by a request that passes through and is counted."""
    overrides = {"positions": [1], "embeds": [[0.0] * 128]}
    counted = driver.metric("kvlingua_refusals_total", reason="embedding_overrides")
    driver.generate(replace(UNSEEN, max_tokens=1, options={"overrides": overrides}))
    assert driver.metric_reaches("kvlingua_refusals_total", counted + 1, reason="embedding_overrides")


def test_pages_of_1_and_64_are_read_at_16(driver: Driver) -> None:
    for ask in (*BY_1, *BY_64):
        reply = driver.generate(ask)
        assert right(reply, ask)
        assert (reply.reused, reply.local) == (taken(16, ask), 0)
        assert reply.computed == length(ask) - taken(16, ask)


def test_together_in_chunks_and_with_little_room(driver: Driver, stored: Path) -> None:
    asks = [*BY_1, *BY_64, *BY_1]
    reply = driver.generate(*asks)
    assert right(reply, *asks)
    assert reply.reused + reply.local + reply.computed == length(*asks)
    assert reply.reused > taken(16, *BY_1), "what the prefix cache let go of is loaded again"
    assert reply.computed == length(*asks) - taken(16, *asks), "nothing that is stored is computed"


def test_beside_the_own_prefix_cache(driver: Driver) -> None:
    head = replace(BY_1[0], prompt=BY_1[0].prompt[:200])
    assert driver.generate(head).reused == 192
    reply = driver.generate(BY_1[0])
    assert right(reply, BY_1[0])
    assert (reply.local, reply.reused) == (192, taken(16, BY_1[0]) - 192)
    again = driver.generate(BY_1[0])
    assert right(again, BY_1[0])
    assert again.reused == 0
    assert again.local >= taken(16, BY_1[0])


def test_the_stored_values_are_what_is_used(driver: Driver, stored: Path) -> None:
    reply = driver.generate(NEGATED)
    assert reply.reused == taken(16, NEGATED)
    assert not right(reply, NEGATED), "V of the other sign changes nothing, so it isn't used"


def test_damage_is_noticed_after_the_promise(driver: Driver, stored: Path) -> None:
    failed = driver.metric("kvlingua_refusals_total", adapter="sglang")
    for ask in (FLIPPED, CUT):
        reply = driver.generate(ask)
        assert right(reply, ask)
        assert (reply.reused, reply.local, reply.computed) == (0, 0, length(ask)), "recomputed from the start"
    assert driver.metric_reaches("kvlingua_refusals_total", failed + 2, adapter="sglang")
    assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1 + chunks(CUT))
    assert "load failed" in driver.log_text()
    assert driver.metric_reaches("kvlingua_tokens_stored_total", CHUNK * (1 + chunks(CUT))), "it is stored anew"
    assert driver.call("flush_cache")
    reply = driver.generate(FLIPPED, CUT)
    assert right(reply, FLIPPED, CUT)
    assert reply.reused == taken(16, FLIPPED, CUT)


def test_salts_hit_their_own(driver: Driver, stored: Path) -> None:
    for salt in SALTS:
        reply = driver.generate(replace(BY_1[0], **salt))
        assert right(reply, BY_1[0])
        assert (reply.reused, reply.local) == (taken(16, BY_1[0]), 0)
        names = {path.name.partition("-")[0] for path in stored.rglob("*.safetensors")}
        seed = request_seed(salt.get("extra_key"), salt.get("cache_salt"))
        assert names.issuperset(digest.hex() for digest in chain_digests(BY_1[0].prompt, CHUNK, seed))
    reply = driver.generate(replace(BY_1[0], cache_salt="green"))
    assert right(reply, BY_1[0])
    assert (reply.reused, reply.local) == (0, 0)


def test_nothing_is_loaded_for_a_request_that_is_never_admitted(driver: Driver) -> None:
    """One request is promised nearly all slots; the other, of which the store has most, waits, and is given up when
    the first, which outlives it, has taken some steps."""
    runs = replace(UNSEEN, max_tokens=1000, options={"abort_when": [1, 1]})
    waits = replace(BY_1[1], options={"abort_when": [0, 30]})
    settle(driver)
    hits, reads = driver.metric("kvlingua_hits_total"), driver.metric("kvlingua_bytes_total", direction="read")
    running, waiting = (answer.tokens for answer in driver.generate(runs, waits).answers)
    cold = answer(UNSEEN)
    assert running[: len(cold)] == cold[: len(running)]
    assert len(running) >= 30
    assert waiting == []
    settle(driver)
    assert driver.metric("kvlingua_hits_total") == hits + 1, "it was looked up"
    assert driver.metric("kvlingua_bytes_total", direction="read") == reads
    assert driver.call("flush_cache")
    reply = driver.generate(BY_1[1])
    assert right(reply, BY_1[1])
    assert reply.reused == taken(16, BY_1[1])
