"""Requests that are left alone, and changed weights: the same token ids, other content, no hit and nothing stored."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from demo.job import MODEL
from engines.drivers.driver import Driver, DriverError
from engines.drivers.protocol import Ask, Reply
from tests.engines.sglang.conftest import Launcher
from tests.engines.texts import length, taken, text, whole

STORED, NEW, LATER = text(80), text(81), text(82)


@pytest.fixture(scope="module")
def driver(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Page 16; the store has one text, SGLang's own prefix cache has none."""
    with launch(tmp_path_factory.mktemp("requests") / "store") as running:
        running.generate(STORED)
        running.wait_objects(whole(STORED))
        yield running


@pytest.fixture(autouse=True)
def empty(driver: Driver) -> None:
    assert driver.call("flush_cache")


def hits(driver: Driver) -> Reply:
    """The stored text is loaded: what a test found missing is missing for its own reason. Gives the right answer."""
    assert driver.call("flush_cache")
    reply = driver.generate(STORED)
    assert (reply.reused, reply.local) == (taken(16, STORED), 0)
    return reply


def passes(driver: Driver, reason: str, **options: Any) -> list[Reply]:
    """Neither the stored text nor a new one, asked for with these options, is looked up or stored."""
    hits(driver)
    assert driver.call("flush_cache")
    counted = driver.metric("kvlingua_refusals_total", reason=reason)
    before = driver.objects()
    replies = []
    for ask in (STORED, NEW):
        replies.append(driver.generate(replace(ask, options=options)))
        assert (replies[-1].reused, replies[-1].computed) == (0, length(ask))
        assert driver.call("flush_cache")
    assert driver.metric_reaches("kvlingua_refusals_total", counted + 2, reason=reason)
    assert driver.objects() == before
    return replies


def test_replaced_embeddings(driver: Driver) -> None:
    right = hits(driver).answers[0].tokens
    positions = list(range(1, 400))
    overrides = {"positions": positions, "embeds": [[(-1.0) ** position] * 128 for position in positions]}
    replies = passes(driver, "embedding_overrides", overrides=overrides)
    assert replies[0].answers[0].tokens != right, "the same ids, other content"


def test_input_embeddings_are_refused_by_sglang(driver: Driver) -> None:
    """It takes them only without its radix cache, and then kvlingua is off. test_link shows that they pass."""
    embeds = [[float(position % 7 - 3)] * 128 for position in range(130)]
    with pytest.raises(DriverError, match="add `--disable-radix-cache`"):
        driver.generate(Ask([1] * 130, options={"request": {"input_embeds": embeds}}))
    hits(driver)


def test_sessions(driver: Driver) -> None:
    right = hits(driver).answers[0].tokens
    session = driver.call("open_session", capacity_of_str_len=1 << 20)
    first, _ = passes(driver, "session", request={"session_params": {"id": session}})
    assert first.answers[0].tokens == right


def test_log_probabilities_of_the_prompt(driver: Driver) -> None:
    """SGLang computes from the first position that is asked for, so that no more than what lies before is taken."""
    right = hits(driver).answers[0].tokens
    for start, reused in ((100, 96), (0, 0), (-1, taken(16, STORED))):
        assert driver.call("flush_cache")
        asked = {"request": {"return_logprob": True, "logprob_start_len": start}}
        reply = driver.generate(replace(STORED, options=asked))
        assert reply.answers[0].tokens == right
        assert (reply.reused, reply.computed) == (reused, length(STORED) - reused)


def test_changed_weights_end_it(driver: Driver, tmp_path: Path) -> None:
    """Last, because the cache stays off. The change comes without a flush, of which the radix cache hears nothing."""
    right = hits(driver).answers[0].tokens
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    weights = load_file(other / "model.safetensors")
    save_file(
        {name: -1.5 * one for name, one in weights.items()}, other / "model.safetensors", metadata={"format": "pt"}
    )
    before = driver.objects()
    assert "off:" not in driver.log_text()
    assert driver.call("update_weights_from_disk", model_path=str(other), flush_cache=False)
    reply = driver.generate(NEW)
    assert (reply.reused, reply.computed) == (0, length(NEW))
    assert driver.call("flush_cache")
    for ask in (STORED, LATER):
        reply = driver.generate(ask)
        assert (reply.reused, reply.computed) == (0, length(ask))
        assert ask is not STORED or reply.answers[0].tokens != right, "the weights are others"
    assert driver.log_text().count("off: SGLang's weights were changed while it ran (update_weights_from_disk)") == 1
    assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="weights")
    assert driver.call("update_weights_from_disk", model_path=str(MODEL))
    reply = driver.generate(STORED)
    assert reply.answers[0].tokens == right
    assert (reply.reused, driver.objects()) == (0, before), "and it stays off, also when the first ones are back"
