"""Real requests of SGLang, put to the adapter's real link and a filled store, without a running engine: every kind
that passes through, requests of one rid, requests that were retracted, and the memory that loads hold."""

from typing import Any

import pytest

from demo.job import MODEL
from tests.engines.sglang.in_engine import run

pytestmark = pytest.mark.engine

TAKEN = 128  # of 150 tokens at page 16, of which two chunks of 64 are stored


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = run("requests_process.py", str(MODEL), str(tmp_path_factory.mktemp("link")))
    assert found["objects"] == 2
    assert found["control"] == [TAKEN, 1], "an ordinary request is looked up, and hits"
    return found


def test_every_kind_that_passes_through(report: dict[str, Any]) -> None:
    """Neither looked up nor stored, although an ordinary request of the same ids hits, and others are stored."""
    assert sorted(report["passing"]) == report["marks"], "a kind without a test"
    right = {"set": True, "promised": [0, 0], "grown": [0, 0], "control": [TAKEN, 1]}
    assert report["passing"] == dict.fromkeys(report["passing"], right)
    assert report["stored without a mark"] == 2
    assert report["a key that is no text"] == 0


def test_requests_of_one_rid_share_nothing(report: dict[str, Any]) -> None:
    found = report["one rid"]
    assert found["promised"] == {"plain": TAKEN, "salted": 0, "keyed": 0, "embeds": 0, "plain again": TAKEN}
    assert found["stored anew"] == [0, 2], "only what is salted isn't there yet"
    assert found["after a refusal"] == {"plain": 0, "plain again": TAKEN}


@pytest.mark.parametrize(("prompt", "fresh"), [("retracted", TAKEN), ("retracted, whole chunks", TAKEN - 16)])
def test_a_retracted_request_is_asked_for_once_more(report: dict[str, Any], prompt: str, fresh: int) -> None:
    """Its own tokens follow the prompt, so that the prompt's last one needn't be computed; the hit is kept. What it has
    generated is stored with it."""
    found = report[prompt]
    assert {**found, "grown": 0} == {"fresh": fresh, "promised": [TAKEN] * 3, "loaded": True, "grown": 0}
    assert found["grown"] == [1, 0]


def test_memory_that_loads_hold(report: dict[str, Any]) -> None:
    found = report["holding"]
    assert found["held"] == 2 * TAKEN
    assert found["beside"] == [True, False, False], "only a text that begins alike is worth to wait for"
    assert found["given back"] == [TAKEN, TAKEN, [TAKEN]], "the latest load goes"
    assert found["promised again"] == [TAKEN, 0]
    assert found["aborted"] == [0, [TAKEN]]
    assert found["a part"] == [64, [32, 32]]
    assert found["its head is gone"] == [None, [TAKEN]]
    assert found["not promised any more"] == 0
    assert found["too often"] == [False, [TAKEN]]
    assert found["computed then"] == [0, True]
    assert found["no memory"] == [False, 0, 0]
    assert found["switched off"] == [[], 0, [TAKEN]]
    assert found["off"] == 0


def test_who_lacks_memory_that_a_load_holds(report: dict[str, Any]) -> None:
    """Others overtake it while the load is under way, but not for ever."""
    assert report["standing"] == [[True, False]] * 3 + [[False, False]]


def test_what_has_no_room_comes_again(report: dict[str, Any]) -> None:
    """Or is counted as given up, if its request has ended."""
    *stored, lost, lost_at_last = report["little room"]
    assert stored == [1, 1, 1, 0, 1], "the first is the one that a bench begins with"
    assert (lost, lost_at_last) == (0, 1)


def test_what_ranks_compare(report: dict[str, Any]) -> None:
    """A configuration that no key can hold is refused, which `connect` says in a line, and nothing else happens."""
    found, same, other, too_long = report["settings"]
    assert found == same != other
    assert too_long.startswith("IdentityError: ")


def test_nothing_is_remembered_of_requests_that_are_gone(report: dict[str, Any]) -> None:
    assert report["remembered"] == [3, 0]


def test_an_idle_scheduler_sleeps_only_while_nobody_waits(report: dict[str, Any]) -> None:
    assert report["sleeps"] == [False, True]
