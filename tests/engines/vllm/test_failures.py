"""Objects that are damaged or gone after the hit was promised, and stores in trouble: every request is answered as
without cache, one line says so, a metric counts it."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.texts import chunks, length, objects_of, text
from tests.engines.trouble import full, hanging, needs_root, no_folder, read_only
from tests.engines.vllm.conftest import Launcher
from tests.hanging import hanging_folder
from tests.spoil import flip_byte, garbage

TEXTS = [text(seed) for seed in range(30, 34)]


def tokens(driver: Driver, *asks: Ask) -> list[list[int]]:
    return [answer.tokens for answer in driver.generate(*asks).answers]


@pytest.fixture(scope="module")
def cold(launch: Launcher) -> list[list[int]]:
    with launch() as driver:
        return tokens(driver, *TEXTS)


def test_loads_that_fail_after_the_promise(launch: Launcher, tmp_path: Path) -> None:
    """In one batch: a whole text, one with a flipped byte, one whose objects are empty, the flipped one once more.

    A lookup asks which objects there are, so nothing is noticed before the load.
    """
    store = tmp_path / "store"
    engine = {"max_num_batched_tokens": 256, "enable_prefix_caching": False}
    with launch(store, engine=engine) as driver:
        right = tokens(driver, *TEXTS)
        driver.wait_objects(chunks(*TEXTS))
        flip_byte(objects_of(store, TEXTS[1])[3])
        for path in objects_of(store, TEXTS[2]):
            os.truncate(path, 0)
        batch = driver.generate(TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[1])
        assert [answer.tokens for answer in batch.answers] == [right[0], right[1], right[2], right[1]]
        assert driver.metric_reaches("kvlingua_refusals_total", 2, adapter="vllm")
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 2)
        assert "load failed" in driver.log_text()
        driver.wait_objects(chunks(*TEXTS))
        mended = driver.generate(*TEXTS)
        assert [answer.tokens for answer in mended.answers] == right
        assert mended.reused + mended.computed == length(*TEXTS)
        assert mended.reused >= 3 * (length(TEXTS[0]) - 96), "what was damaged has been stored anew"


@pytest.mark.parametrize(
    ("trouble", "line", "metric"),
    [
        pytest.param(read_only, "Read-only file system", "kvlingua_drops_total", marks=needs_root),
        pytest.param(full, "No space left|full|room", "kvlingua_drops_total", marks=needs_root),
        pytest.param(no_folder, "Not a directory|File exists|no folder", "kvlingua_drops_total"),
        pytest.param(hanging, "hang|within", "kvlingua_refusals_total", marks=needs_root),
    ],
)
def test_a_store_in_trouble(
    launch: Launcher,
    cold: list[list[int]],
    tmp_path: Path,
    trouble: Callable[[Path], AbstractContextManager[Path]],
    line: str,
    metric: str,
) -> None:
    with trouble(tmp_path / "trouble") as store, launch(store) as driver:
        for _ in range(2):
            assert tokens(driver, *TEXTS) == cold
        assert driver.metric_reaches(metric, 1)
        said = [text for text in driver.log_text().splitlines() if text.startswith("kvlingua: WARNING")]
        assert re.search(line, "\n".join(said))
        assert len(said) <= 3, "not a line for each request"


def test_a_store_of_garbage(launch: Launcher, cold: list[list[int]], tmp_path: Path) -> None:
    """Objects that have the right names, and files that have none of the names that objects can have."""
    with launch(tmp_path / "store", role="producer") as driver:
        assert tokens(driver, *TEXTS) == cold
        driver.wait_objects(chunks(*TEXTS))
    assert garbage(tmp_path / "store") == chunks(*TEXTS)
    (tmp_path / "store" / "namespace.json").mkdir()
    (tmp_path / "store" / "x.safetensors").write_bytes(os.urandom(1000))
    with launch(tmp_path / "store") as driver:
        reply = driver.generate(*TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold
        assert driver.metric_reaches("kvlingua_refusals_total", 1, adapter="vllm")
        assert "load failed" in driver.log_text()


def test_a_store_that_begins_to_hang(launch: Launcher, cold: list[list[int]], tmp_path: Path) -> None:
    """The requests in flight wait for the deadline of a load, later ones for nothing."""
    options = {"engine": {"enable_prefix_caching": False}, "settings": {"KVLINGUA_LOAD_TIMEOUT_S": "1"}}
    with hanging_folder(tmp_path) as folder, launch(folder.path / "store", **options) as driver:
        assert tokens(driver, *TEXTS) == cold
        assert driver.metric_reaches("kvlingua_tokens_stored_total", 64 * chunks(*TEXTS))
        folder.freeze()
        assert tokens(driver, *TEXTS) == cold
        assert tokens(driver, *TEXTS) == cold
        assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="store_timeout")
        folder.thaw()
