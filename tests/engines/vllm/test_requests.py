"""Requests whose KV isn't a function of their token ids pass through; those with a cache_salt share only with their
own kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from tests.engines.texts import chunks, length, taken, text, whole
from tests.engines.vllm.conftest import Launcher

TEXT, OTHER = text(40), text(41)


@pytest.fixture(scope="module")
def driver(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """An engine that takes embeddings, and has no prefix cache of its own; TEXT is stored."""
    store = tmp_path_factory.mktemp("requests") / "store"
    engine = {"enable_prefix_caching": False, "enable_prompt_embeds": True}
    with launch(store, engine=engine) as driver:
        driver.generate(TEXT)
        driver.wait_objects(chunks(TEXT))
        yield driver


def answer(driver: Driver, ask: Ask) -> list[int]:
    return driver.generate(ask).answers[0].tokens


def with_options(ask: Ask, **options: object) -> Ask:
    return Ask(ask.prompt, ask.max_tokens, options=options)


def test_cache_salt(driver: Driver) -> None:
    objects = driver.objects()
    plain = driver.generate(TEXT)
    assert plain.reused == taken(32, TEXT)
    salted = Ask(TEXT.prompt, TEXT.max_tokens, cache_salt="a")
    first = driver.generate(salted)
    assert (first.reused, first.computed) == (0, length(TEXT))
    driver.wait_objects(objects + chunks(TEXT))
    assert driver.generate(salted).reused == taken(32, TEXT)
    assert driver.generate(Ask(TEXT.prompt, TEXT.max_tokens, cache_salt="b")).reused == 0
    assert first.answers[0].tokens == plain.answers[0].tokens


def test_prompt_embeddings(driver: Driver, tmp_path: Path) -> None:
    """Their token ids are zeros, which is what is stored beforehand: a hit would be a prompt of zeros."""
    weights = load_file(Path(MODEL) / "model.safetensors")["model.embed_tokens.weight"]
    zeros = Ask([0] * length(TEXT), TEXT.max_tokens)
    driver.generate(zeros)
    assert driver.metric_reaches("kvlingua_tokens_stored_total", 64 * whole(TEXT, zeros))
    assert driver.generate(zeros).reused == taken(32, zeros)
    objects = driver.objects()
    for ask in (TEXT, OTHER):
        file = tmp_path / f"{length(ask)}-{ask.prompt[-2]}.safetensors"
        save_file({"embeds": weights[torch.tensor(ask.prompt)].float().contiguous()}, file)
        embedded = driver.generate(with_options(ask, embeds=str(file)))
        assert (embedded.reused, embedded.computed) == (0, length(ask))
        assert embedded.answers[0].tokens == answer(driver, ask)
    assert driver.metric_reaches("kvlingua_refusals_total", 2, reason="prompt_embeds")
    assert driver.objects() <= objects + whole(OTHER)


def test_prompt_logprobs(driver: Driver) -> None:
    """They are computed from the hidden states of all tokens of the prompt."""
    reply = driver.generate(with_options(TEXT, sampling={"prompt_logprobs": 1}))
    assert (reply.reused, reply.computed) == (0, length(TEXT))
