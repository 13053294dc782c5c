"""What was computed with a LoRA adapter is found by requests of that very adapter, known by its content: not by the
base model's, not by another adapter's, not by one that took its name."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.adapters import RANK, random_adapter
from tests.engines.texts import chunks, length, taken, text
from tests.engines.vllm.conftest import Launcher
from tests.spoil import negate_v

pytestmark = pytest.mark.thorough

# More slots for adapters than the tests have: once the last one is in use, vLLM computes others wrongly.
ENGINE = {"enable_prefix_caching": False, "enable_lora": True, "max_lora_rank": RANK, "max_loras": 8}
TEXT, OTHER = text(80), text(81)


@dataclass(frozen=True)
class Stored:
    """Adapters in folders, a store with what the engine has computed with the first and without any, the answers of an
    engine without kvlingua."""

    folders: dict[str, Path]
    store: Path
    cold: dict[str, list[int]]


def asked(ask: Ask, folder: Path | None, **options: object) -> Ask:
    return Ask(ask.prompt, ask.max_tokens, options={**({"lora": str(folder)} if folder else {}), **options})


def known(driver: Driver, folder: Path, **options: object) -> None:
    """Have the adapter's digest computed, which its first request begins, or refused."""
    refused = driver.log_text().count("pass through")
    driver.generate(asked(OTHER, folder, **options))
    end = time.monotonic() + 30.0
    while f"{folder} is known" not in driver.log_text() and time.monotonic() < end:
        driver.generate(asked(OTHER, folder, **options))
        if driver.log_text().count("pass through") > refused:
            return
        time.sleep(0.1)


def tokens(driver: Driver, ask: Ask) -> list[int]:
    return driver.generate(ask).answers[0].tokens


@pytest.fixture(scope="module")
def stored(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    root = tmp_path_factory.mktemp("lora")
    folders = {
        "a": random_adapter(root / "a", 1),
        "b": random_adapter(root / "b", 2),
        "stronger": random_adapter(root / "stronger", 1, lora_alpha=2 * RANK),
        "patterned": random_adapter(root / "patterned", 1, rank_pattern={"q_proj": RANK}),
    }
    shutil.copytree(folders["a"], root / "copy of a")
    folders["copy of a"] = root / "copy of a"
    with launch(engine=ENGINE) as driver:
        cold = {name: tokens(driver, asked(TEXT, folder)) for name, folder in folders.items()}
    store = root / "store"
    with launch(store, page=128) as driver:
        cold["base"] = tokens(driver, TEXT)
        driver.wait_objects(chunks(TEXT))
    assert len({tuple(cold[name]) for name in ("a", "b", "stronger", "base")}) == 4, "or the test shows nothing"
    with launch(store, page=128, engine=ENGINE) as driver:
        known(driver, folders["a"])
        driver.generate(asked(TEXT, folders["a"]))
        driver.wait_objects(2 * chunks(TEXT))
        driver.generate(OTHER)  # without an adapter where they are enabled: read, never stored
        assert driver.generate(OTHER).reused == 0
        assert driver.generate(TEXT).reused == taken(128, TEXT)
    return Stored(folders, store, cold)


def test_an_adapter_finds_its_own(launch: Launcher, stored: Stored, tmp_path: Path) -> None:
    with launch(stored.store, page=32, role="consumer", engine=ENGINE) as driver:
        for name, folder in stored.folders.items():
            known(driver, folder)
            reply = driver.generate(asked(TEXT, folder))
            assert reply.answers[0].tokens == stored.cold[name]
            assert reply.reused == (taken(32, TEXT) if name in ("a", "copy of a") else 0), name
        assert driver.generate(TEXT).reused == taken(32, TEXT)
        batch = driver.generate(asked(TEXT, stored.folders["b"]), asked(TEXT, stored.folders["a"]), TEXT)
        names = ("b", "a", "base")
        assert [answer.tokens for answer in batch.answers] == [stored.cold[name] for name in names]
        assert batch.reused == 2 * taken(32, TEXT)
        assert "rank_pattern" in driver.log_text()
    shutil.copytree(stored.store, tmp_path / "spoiled")
    assert negate_v(tmp_path / "spoiled") > 0
    with launch(tmp_path / "spoiled", page=32, role="consumer", engine=ENGINE) as driver:
        known(driver, stored.folders["a"])
        reply = driver.generate(asked(TEXT, stored.folders["a"]))
        assert reply.reused == taken(32, TEXT)
        assert reply.answers[0].tokens != stored.cold["a"]


def test_two_adapters_of_one_name(launch: Launcher, stored: Stored, tmp_path: Path) -> None:
    """vLLM tells them apart by number only. And one that was written after the engine began, whose files it may have
    read before they were as they are."""
    late = tmp_path / "late"
    with launch(stored.store, page=32, engine=ENGINE) as driver:
        a, b = (asked(TEXT, stored.folders[name], lora_name="same") for name in ("a", "b"))
        known(driver, stored.folders["a"], lora_name="same")
        assert driver.generate(a).reused == taken(32, TEXT)
        objects = driver.objects()
        for ask, name in ((b, "b"), (a, "a"), (b, "b")):
            reply = driver.generate(ask)
            assert (reply.reused, reply.computed) == (0, length(TEXT))
            assert reply.answers[0].tokens == stored.cold[name]
        random_adapter(late, 3)
        known(driver, late)
        assert driver.generate(asked(TEXT, late)).reused == 0
        assert "changed after this process began" in driver.log_text()
        assert driver.generate(TEXT).reused == taken(32, TEXT)
        assert driver.objects() == objects
