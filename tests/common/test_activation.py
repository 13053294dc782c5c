"""One line says that there is cache, or why not; whatever fails while it is found out says so, too."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from kvlingua.common import metrics
from kvlingua.common.activation import Activation, say_off
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.guard import Guard
from kvlingua.common.identity.model import ModelDescription, describe_model


@pytest.fixture
def description() -> ModelDescription:
    return describe_model(MODEL, compute_dtype="float32", kv_dtype="float32")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[KVCache]:
    with KVCache.open(Config(url="memory://", fingerprint_dir=tmp_path / "fingerprints")) as cache:
        yield cache


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    logger = logging.getLogger("kvlingua")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "kvlingua")
    return caplog


def lines(said: pytest.LogCaptureFixture, *beginnings: str) -> list[str]:
    """Those of our lines, once there is one."""
    for _ in range(200):
        found = [line for line in said.messages if line.startswith(beginnings)]
        if found:
            return found
        time.sleep(0.05)
    return []


def refusals(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("kvlingua_refusals_total", {"adapter": "test", "reason": reason}) or 0.0


def test_on_then_off(cache: KVCache, description: ModelDescription, said: pytest.LogCaptureFixture) -> None:
    activation = Activation(cache, description, Guard("test"))
    assert activation.namespace is None
    activation.start("hf", 16)
    (line,) = lines(said, "on: ", "off: ")
    assert activation.namespace is not None
    digest = activation.namespace.digest[:12]
    assert line == f"on: test, namespace {digest}, layout hf, page 16, store {cache.describe()}"
    before = refusals("reset")
    for _ in range(2):
        activation.off("reset", "the reason")
        assert activation.namespace is None
    assert lines(said, "off: ") == ["off: the reason"]
    assert refusals("reset") == before + 1


def test_the_shards_are_as_configured(
    tmp_path: Path, description: ModelDescription, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLINGUA_LAYERS_PER_SHARD", "1")
    monkeypatch.setenv("KVLINGUA_FINGERPRINT_DIR", str(tmp_path))
    with KVCache.open("memory://") as cache:
        activation = Activation(cache, description, Guard("test"))
        activation.start("hf", 16)
        assert lines(said, "on: ")
        assert activation.namespace is not None
        assert activation.namespace.layers > activation.namespace.grid.layers_per_shard == 1


def test_off_before_it_is_on(cache: KVCache, description: ModelDescription, said: pytest.LogCaptureFixture) -> None:
    activation = Activation(cache, description, Guard("test"))
    activation.off("reset", "the reason")
    activation.start("hf", 16)
    time.sleep(1.0)
    assert activation.namespace is None
    assert lines(said, "on: ", "off: ") == ["off: the reason"]


@pytest.mark.parametrize(
    ("change", "reason", "line"),
    [
        (
            {"weight_files": {"a": Path("/nowhere/a.safetensors")}},
            "fingerprint",
            "off: the weights have no fingerprint",
        ),
        ({"geometry": None}, "start", "off: an unexpected error at start"),
    ],
)
def test_whatever_fails_at_start_is_said(
    cache: KVCache,
    description: ModelDescription,
    said: pytest.LogCaptureFixture,
    change: dict[str, Any],
    reason: str,
    line: str,
) -> None:
    before = refusals(reason)
    activation = Activation(cache, dataclasses.replace(description, **change), Guard("test"))
    activation.start("hf", 16)
    (found,) = lines(said, "on: ", "off: ")
    assert found.startswith(line)
    assert activation.namespace is None
    assert refusals(reason) == before + 1


def test_a_refusal_without_a_cache_is_counted_in_a_file(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    say_off("test", "device", "no such device", tmp_path)
    assert lines(said, "off: ") == ["off: no such device"]
    for _ in range(100):
        if any('reason="device"' in file.read_text() for file in tmp_path.glob("*.prom")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing was counted in the folder")
