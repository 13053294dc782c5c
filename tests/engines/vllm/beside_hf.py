"""vLLM and transformers with one random model and one store: what each answers, and how many tokens it reused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from kvlingua import hf
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from tests.engines.texts import CHUNK, length, text
from tests.spoil import negate_v

REUSED = 6 * CHUNK  # of a whole prompt here, at any block size


def cut(seed: int, tokens: int = REUSED + 7, max_tokens: int = 8) -> Ask:
    """The beginning of a text: behind what is reused a few tokens are computed, which attend to it in all layers."""
    ask = text(seed, max_tokens=max_tokens)
    return replace(ask, prompt=ask.prompt[:tokens])


def greedy(model: Any, ask: Ask) -> list[int]:
    """What transformers answers; with what is stored, if kvlingua is attached to the model."""
    ids = torch.tensor([list(ask.prompt)])
    mask = torch.ones_like(ids)
    output = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=ask.max_tokens)
    tokens: list[int] = output[0, ids.shape[1] :].tolist()
    return tokens


def cold(model: Any, *asks: Ask) -> list[list[int]]:
    return [greedy(model, ask) for ask in asks]


def warm(model: Any, store: Path, *asks: Ask) -> tuple[list[list[int]], int]:
    """What transformers answers with this store, and how many of the prompts' tokens were reused."""
    with KVCache.open(Config(url=store.as_uri(), lookup_timeout_s=30)) as cache:
        attached, tokens, reused = hf.attach(model, cache), [], 0
        try:
            for ask in asks:
                tokens.append(greedy(attached, ask))
                reused += attached.kvlingua.last.reused
            assert cache.flush(30)
        finally:
            hf.detach(attached)
    return tokens, reused


def answers(driver: Driver, *asks: Ask) -> tuple[list[list[int]], int]:
    """What vLLM answers to prompts handed over together, and how many of their tokens were taken from the store."""
    reply = driver.generate(*asks)
    assert reply.local + reply.reused + reply.computed == length(*asks)
    return [answer.tokens for answer in reply.answers], reply.reused


@contextmanager
def spoiled(objects: Sequence[Path], *layers: int) -> Iterator[None]:
    """V of these layers has the other sign in these objects, for a while."""
    before = [path.read_bytes() for path in objects]
    for path in objects:
        assert negate_v(path, layers) == 1
    yield
    for path, data in zip(objects, before, strict=True):
        path.write_bytes(data)
