"""What is done to a live engine: its metrics are read, requests are given up, its caches are reset, its store goes
away. In the end its weights change where nobody sees it."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.reference import answer, answers
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text, whole
from tests.engines.vllm.conftest import Launcher
from tests.spoil import flip_byte

TEXT, OTHER, *MORE = ALL = [text(seed) for seed in range(140, 146)]
NO_LOCAL = {"enable_prefix_caching": False}


def tokens(driver: Driver, *asks: Ask) -> list[list[int]]:
    return [answer.tokens for answer in driver.generate(*asks).answers]


@pytest.fixture(scope="module")
def driver(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with launch(tmp_path_factory.mktemp("operations") / "store", engine=NO_LOCAL) as driver:
        yield driver


@pytest.fixture(scope="module")
def store(driver: Driver) -> Path:
    return Path(str(driver.url).removeprefix("file://"))


def reset(driver: Driver) -> None:
    """vLLM refuses while a block is in use: as it would for those that are kept for copies."""
    assert driver.call("reset_prefix_cache")


def test_vllm_shows_the_counters(driver: Driver) -> None:
    assert tokens(driver, TEXT) == answers(TEXT)
    driver.wait_objects(whole(TEXT))
    reply = driver.generate(TEXT)
    assert reply.reused == taken(32, TEXT)
    driver.generate(Ask([1, 2, 3], 2))  # what was counted after a step is told after the next
    assert driver.call("metric", name="vllm:kvlingua_tokens_reused") == taken(32, TEXT)
    assert driver.call("metric", name="vllm:kvlingua_tokens_stored") == whole(TEXT) * CHUNK
    assert driver.call("metric", name="vllm:kvlingua_hits") == 1
    assert driver.call("metric", name="vllm:kvlingua_lookups") >= 2
    assert driver.call("metric", name="vllm:kvlingua_bytes_read") > 0
    assert driver.call("metric", name="vllm:kvlingua_corrupt_objects") == 0


def test_requests_that_are_given_up(driver: Driver) -> None:
    """Before, in and after their loads, and while they compute; no block stays taken."""
    for steps in (0, 1, 1, 1, 2, 3, 5, 8):
        driver.call("abort_after", prompt=TEXT.prompt, steps=steps)
        driver.call("abort_after", prompt=OTHER.prompt, steps=steps)
    assert tokens(driver, TEXT, OTHER) == answers(TEXT, OTHER)
    driver.generate(Ask([1, 2, 3], 2))  # what was given up ends in a step
    reset(driver)


def test_there_is_cache_again_after_a_reset(driver: Driver) -> None:
    """The first request sees none; the weights are soon proved to be what they were."""
    reset(driver)
    assert driver.generate(TEXT).reused == 0
    comes_back(driver)
    assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="reset")
    assert "off: " not in driver.log_text()


def comes_back(driver: Driver) -> None:
    end = time.monotonic() + 60
    while (reply := driver.generate(TEXT)).reused == 0:
        assert reply.answers[0].tokens == answer(TEXT)
        assert time.monotonic() < end
    assert reply.reused == taken(32, TEXT)
    assert reply.answers[0].tokens == answer(TEXT)


def test_damage_among_many(driver: Driver, store: Path) -> None:
    """Eight requests at once, one text damaged, another's objects gone: each is answered right, and stored anew."""
    tokens(driver, *ALL)
    driver.wait_objects(whole(*ALL))
    assert flip_byte(objects_of(store, MORE[0])[2]) == 1
    for path in objects_of(store, MORE[1]):
        path.unlink()
    batch = [TEXT, MORE[0], MORE[1], MORE[2], MORE[0], OTHER, MORE[1], MORE[3]]
    reply = driver.generate(*batch)
    assert [answer.tokens for answer in reply.answers] == answers(*batch)
    assert reply.reused >= taken(32, TEXT, OTHER, MORE[2], MORE[3])
    assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1)
    driver.wait_objects(whole(*ALL))
    assert driver.generate(*ALL).reused == taken(32, *ALL)


def test_the_store_is_deleted_under_it(driver: Driver, store: Path) -> None:
    for folder in store.iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert tokens(driver, *ALL) == answers(*ALL)
    driver.wait_objects(chunks(TEXT))
    assert tokens(driver, *ALL) == answers(*ALL)


def test_weights_that_changed_unseen(driver: Driver) -> None:
    """A function of the caller's own writes them; the reset that has to follow finds out. Runs last."""
    function = "tests.engines.vllm.in_worker:write_weight"
    driver.call("collective_rpc", method=function, arguments={"scale": 2.0})
    driver.call("collective_rpc", method=function, arguments={"scale": 0.5})  # to the bit what it was
    reset(driver)
    comes_back(driver)
    driver.call("collective_rpc", method=function, arguments={"scale": 2.0})
    reset(driver)
    for _ in range(20):
        reply = driver.generate(TEXT)
        assert (reply.reused, reply.computed) == (0, length(TEXT))
    assert len([line for line in driver.log_text().splitlines() if "off: " in line]) == 1
    assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="weights")
