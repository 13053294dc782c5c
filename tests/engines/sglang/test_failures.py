"""Stores in trouble: every request is answered as without cache, one line says so, a metric counts it."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import CHUNK, chunks, length, text
from tests.hanging import hanging_folder, why_not
from tests.spoil import garbage

TEXTS = [text(seed) for seed in range(100, 103)]
MORE = text(110)
needs_root = pytest.mark.skipif(why_not() is not None, reason=f"a file system is mounted: {why_not()}")


def tokens(driver: Driver, *asks: Ask) -> list[list[int]]:
    return [answer.tokens for answer in driver.generate(*asks).answers]


def said(driver: Driver) -> list[str]:
    """kvlingua's lines of warning."""
    return [line for line in driver.log_text().splitlines() if "] kvlingua: WARNING: " in line]


@pytest.fixture(scope="module")
def cold(launch: Launcher) -> list[list[int]]:
    with launch() as driver:
        return tokens(driver, *TEXTS, MORE)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, which takes root."""
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def hanging(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    with hanging_folder(folder) as frozen:
        frozen.freeze()
        yield frozen.path / "store"


@pytest.mark.parametrize(
    ("trouble", "line", "metric"),
    [
        pytest.param(lambda path: mounted(path, "ro"), "Read-only", "kvlingua_drops_total", marks=needs_root),
        pytest.param(lambda path: mounted(path, "size=64k"), "No space|full", "kvlingua_drops_total", marks=needs_root),
        pytest.param(hanging, "hang|within|answer", "kvlingua_refusals_total", marks=needs_root),
    ],
    ids=["unwritable", "full", "hanging"],
)
def test_a_store_in_trouble_from_the_start(
    launch: Launcher,
    cold: list[list[int]],
    tmp_path: Path,
    trouble: Callable[[Path], AbstractContextManager[Path]],
    line: str,
    metric: str,
) -> None:
    with trouble(tmp_path / "trouble") as store, launch(store) as driver:
        for _ in range(2):
            assert tokens(driver, *TEXTS, MORE) == cold
            assert driver.call("flush_cache")
        assert driver.metric_reaches(metric, 1)
        assert re.search(line, "\n".join(said(driver))), said(driver)
        assert len(said(driver)) <= 4, "not a line for each request"


@needs_root
def test_garbage_and_a_store_that_begins_to_hang(launch: Launcher, cold: list[list[int]], tmp_path: Path) -> None:
    """Objects that have the right names, then a folder that no longer answers, then one that does again."""
    with hanging_folder(tmp_path) as folder:
        settings = {"KVLINGUA_LOAD_TIMEOUT_S": "1"}
        with launch(folder.path / "store", settings=settings) as driver:
            assert tokens(driver, *TEXTS) == cold[:3]
            driver.wait_objects(chunks(*TEXTS))
            assert garbage(folder.path / "store") == chunks(*TEXTS)
            (folder.path / "store" / "x.safetensors").write_bytes(os.urandom(1000))
            assert driver.call("flush_cache")
            reply = driver.generate(*TEXTS)
            assert [answer.tokens for answer in reply.answers] == cold[:3]
            assert (reply.reused, reply.computed) == (0, length(*TEXTS))
            assert driver.metric_reaches("kvlingua_corrupt_objects_total", chunks(*TEXTS))
            assert driver.metric_reaches("kvlingua_tokens_stored_total", 2 * CHUNK * chunks(*TEXTS)), "stored anew"
            folder.freeze()
            for _ in range(2):
                assert driver.call("flush_cache")
                assert tokens(driver, *TEXTS, MORE) == cold
            assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="store_timeout")
            folder.thaw()
            assert driver.call("flush_cache")
            assert tokens(driver, *TEXTS) == cold[:3]
            assert any("load failed" in line for line in said(driver))
