"""Stores in trouble: every request is answered as without cache, a line says so, a metric counts it.

One engine has them all, one after the other: its store opens nothing before its first call and holds nothing between
calls, so that what is put in the folder's place is what it finds, as at a start.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import chunks, length, taken, text, whole
from tests.engines.trouble import full, needs_root, no_folder, read_only
from tests.hanging import HangingFolder, hanging_folder, why_not
from tests.spoil import garbage

TEXTS = [text(seed) for seed in range(100, 103)]
MORE = text(110)


def tokens(driver: Driver, *asks: Ask) -> list[list[int]]:
    return [answer.tokens for answer in driver.generate(*asks).answers]


def said(driver: Driver) -> list[str]:
    """kvlingua's lines of warning."""
    return [line for line in driver.log_text().splitlines() if "] kvlingua: WARNING: " in line]


@dataclass(frozen=True)
class Running:
    """An engine, and the place of its store; `hanging`: what it lies in, where that can be mounted."""

    driver: Driver
    store: Path
    hanging: HangingFolder | None

    def clear(self) -> None:
        """Nothing is in the store's place, and the engine has noticed that it can be asked again."""
        if self.hanging is not None:
            self.hanging.thaw()
        if self.store.is_dir():
            shutil.rmtree(self.store)
        self.store.unlink(missing_ok=True)
        for seed in range(200, 220):
            if not self.driver.objects():
                self.driver.generate(text(seed, tokens=150, max_tokens=1))
                self.driver.call("flush_cache")
        self.driver.wait_objects(1)
        shutil.rmtree(self.store)


@pytest.fixture(scope="module")
def cold(launch: Launcher) -> list[list[int]]:
    with launch() as driver:
        return tokens(driver, *TEXTS, MORE)


@pytest.fixture(scope="module")
def running(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Page 16; the folder hangs from before the start on."""
    folder, settings = tmp_path_factory.mktemp("trouble"), {"KVLINGUA_LOAD_TIMEOUT_S": "1"}
    if why_not() is not None:
        with launch(folder / "store", settings=settings) as driver:
            yield Running(driver, folder / "store", None)
        return
    with hanging_folder(folder) as hanging:
        hanging.freeze()
        store = hanging.path / "store"
        with launch(store, settings=settings) as driver:
            yield Running(driver, store, hanging)


def is_answered_as_without(running: Running, cold: list[list[int]], line: str, metric: str, reason: str) -> None:
    """Twice; the metric grows; something like `line` is said, and not for each request."""
    driver, before = running.driver, len(said(running.driver))
    counted = driver.metric(metric, reason=reason)
    for _ in range(2):
        assert driver.call("flush_cache")
        assert tokens(driver, *TEXTS, MORE) == cold
    assert driver.metric_reaches(metric, counted + 1, reason=reason)
    lines = said(driver)[before:]
    assert re.search(line, "\n".join(lines)), lines
    assert len(lines) <= 4, lines


@needs_root
def test_a_store_that_hangs_from_the_start(running: Running, cold: list[list[int]]) -> None:
    is_answered_as_without(running, cold, "hang|within|answer", "kvlingua_refusals_total", "store_timeout")


@pytest.mark.parametrize(
    ("trouble", "line", "reason"),
    [
        pytest.param(read_only, "Read-only", "store", marks=needs_root),
        pytest.param(full, "No space|full", "store_full", marks=needs_root),
        pytest.param(no_folder, "Not a directory|File exists|no folder", "store"),
    ],
)
def test_a_store_in_trouble(
    running: Running,
    cold: list[list[int]],
    trouble: Callable[[Path], AbstractContextManager[Path]],
    line: str,
    reason: str,
) -> None:
    running.clear()
    with trouble(running.store):
        is_answered_as_without(running, cold, line, "kvlingua_drops_total", reason)


def test_objects_of_garbage_and_a_store_that_begins_to_hang(running: Running, cold: list[list[int]]) -> None:
    """Objects that have the right names, then a folder that no longer answers, then one that does again."""
    running.clear()
    driver, store = running.driver, running.store
    assert tokens(driver, *TEXTS) == cold[:3]
    driver.wait_objects(whole(*TEXTS))
    assert garbage(store) == whole(*TEXTS)
    (store / "x.safetensors").write_bytes(os.urandom(1000))
    assert driver.call("flush_cache")
    reply = driver.generate(*TEXTS)
    assert [answer.tokens for answer in reply.answers] == cold[:3]
    assert (reply.reused, reply.computed) == (0, length(*TEXTS))
    assert driver.metric_reaches("kvlingua_corrupt_objects_total", chunks(*TEXTS))
    assert any("load failed" in line for line in said(driver))
    driver.wait_objects(whole(*TEXTS) + 1)
    assert driver.call("flush_cache")
    reply = driver.generate(*TEXTS)
    assert [answer.tokens for answer in reply.answers] == cold[:3]
    assert reply.computed == length(*TEXTS) - taken(16, *TEXTS), "stored anew"
    if running.hanging is None:
        return
    timeouts = driver.metric("kvlingua_refusals_total", reason="store_timeout")
    running.hanging.freeze()
    for _ in range(2):
        assert driver.call("flush_cache")
        assert tokens(driver, *TEXTS, MORE) == cold
    assert driver.metric_reaches("kvlingua_refusals_total", timeouts + 1, reason="store_timeout")
    running.hanging.thaw()
    assert driver.call("flush_cache")
    assert tokens(driver, *TEXTS) == cold[:3]
