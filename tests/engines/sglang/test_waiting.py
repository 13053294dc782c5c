"""A request that waits for the store keeps nobody else waiting: what runs goes on, what comes later overtakes it, and
whoever gives it up gets its memory back. Further turns of a chat, and requests that SGLang retracts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from kvlingua.common.prefix import reusable_tokens
from tests.engines.reference import answer, answers
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text, whole
from tests.hanging import HangingFolder, hanging_folder, needs_root, why_not

PAGE = 16
RUNS, LATER = text(130, max_tokens=150), text(131)
LAST = text(143)  # asked for once, since what is stored would wait for the load that hangs
LONG = text(142, tokens=1300)  # more than is left of CROWDED's tokens beside one of STORED
STORED = [text(seed, tokens=450) for seed in range(132, 136)]
CHAT = text(141, tokens=300, max_tokens=200)
GREEDY = [text(seed, tokens=200, max_tokens=300) for seed in (150, 151, 152, 154)]
CROWDED = {"max_total_tokens": 1600, "chunked_prefill_size": 128}
# SGLang's own switch for tests: every so many steps it takes back requests that run. A loaded machine asks slowly.
SETTINGS = {
    "SGLANG_TEST_RETRACT": "1",
    "SGLANG_TEST_RETRACT_INTERVAL": "25",
    "KVLINGUA_LOOKUP_TIMEOUT_S": "3",
    "KVLINGUA_LOAD_TIMEOUT_S": "120",
}
STALL_S = 100


def next_turn() -> Ask:
    """The chat so far, and a further question."""
    return Ask([*CHAT.prompt, *answer(CHAT), *CHAT.prompt[-20:]])


@dataclass(frozen=True)
class Running:
    driver: Driver
    store: Path
    hanging: HangingFolder | None


@pytest.fixture(scope="module")
def running(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("waiting")
    if why_not() is not None:
        with launch(folder / "store", settings=SETTINGS, engine=CROWDED) as driver:
            yield Running(driver, folder / "store", None)
        return
    with hanging_folder(folder) as hanging:
        store = hanging.path / "store"
        with launch(store, settings=SETTINGS, engine=CROWDED) as driver:
            yield Running(driver, store, hanging)


def test_what_was_generated_is_stored_too(running: Running) -> None:
    driver, turn = running.driver, next_turn()
    assert driver.generate(CHAT).answers[0].tokens == answer(CHAT)
    driver.wait_objects(whole(CHAT))
    assert whole(CHAT) > chunks(CHAT) + 2
    assert driver.call("flush_cache")
    reply = driver.generate(turn)
    assert reply.answers[0].tokens == answer(turn)
    assert (reply.reused, reply.local) == (reusable_tokens(whole(CHAT) * CHUNK, length(turn), PAGE), 0)


def test_retracted_requests_are_answered_as_ever(running: Running) -> None:
    driver = running.driver
    for _ in range(2):  # the second time what the first one has stored is loaded, and taken back
        assert driver.call("flush_cache")
        reply = driver.generate(*GREEDY)
        assert [answer.tokens for answer in reply.answers] == answers(*GREEDY)
    assert "Testing retraction" in driver.log_text()
    assert reply.reused >= taken(PAGE, *GREEDY)
    assert driver.call("flush_cache"), "nothing is held any more"


@needs_root
def test_a_load_that_hangs_keeps_nobody_waiting(running: Running) -> None:
    """One runs; one waits for an object whose read stalls; one that comes later is computed meanwhile, and when it has
    finished the waiting one is given up, which ends at once. Its memory is SGLang's again, and its text can be had."""
    driver, hanging = running.driver, running.hanging
    assert hanging is not None
    driver.generate(*STORED)
    driver.wait_objects(chunks(*STORED))
    assert driver.call("flush_cache")
    hanging.spoil(**{objects_of(running.store, STORED[0])[2].name: {"stall": STALL_S}})
    waits = replace(STORED[0], options={"abort_when": [2, LATER.max_tokens]})
    reply = driver.generate(RUNS, waits, LATER)
    ran, waited, later = (answer.tokens for answer in reply.answers)
    assert ran == answer(RUNS)
    assert later == answer(LATER)
    assert waited == [], "it waited until it was given up"
    assert reply.seconds < 120
    hanging.spoil()
    assert driver.call("flush_cache"), "nothing is held any more"
    for _ in range(30):
        reply = driver.generate(STORED[0])
        assert reply.answers[0].tokens == answer(STORED[0])
        if reply.reused:
            break
        assert driver.call("flush_cache")
    assert reply.reused == taken(PAGE, STORED[0])


@needs_root
def test_who_lacks_the_memory_of_a_load_that_hangs_keeps_nobody_waiting(running: Running) -> None:
    """One waits for an object whose read stalls; one lacks the memory which that holds; one that comes later, and has
    room, is computed meanwhile."""
    driver, hanging = running.driver, running.hanging
    assert hanging is not None
    driver.generate(STORED[1], LONG)
    driver.wait_objects(chunks(STORED[1], LONG))
    assert driver.call("flush_cache")
    hanging.spoil(**{objects_of(running.store, STORED[1])[2].name: {"stall": STALL_S}})
    until_then = {"abort_when": [2, LAST.max_tokens]}
    reply = driver.generate(replace(STORED[1], options=until_then), replace(LONG, options=until_then), LAST)
    hanging.spoil()
    assert [answer.tokens for answer in reply.answers] == [[], [], answer(LAST)]
    assert reply.seconds < STALL_S
    assert driver.call("flush_cache"), "nothing is held any more"


def test_many_at_once_with_little_room(running: Running) -> None:
    driver = running.driver
    asks = [*STORED, LATER, *STORED, *GREEDY, *STORED]
    for _ in range(2):
        assert driver.call("flush_cache")
        reply = driver.generate(*asks)
        assert [answer.tokens for answer in reply.answers] == answers(*asks)
    assert reply.reused >= taken(PAGE, *STORED)
    assert driver.call("flush_cache")
