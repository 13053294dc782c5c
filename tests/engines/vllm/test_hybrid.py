"""Models whose layers attend to a sliding window and to all tokens by turns (Gemma 2): vLLM has a block table for each
kind, and drops what the window has left behind. What is stored holds all layers of every token, as transformers
computes them; what is loaded is right in both kinds. The answers to compare with are those of transformers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Gemma2ForCausalLM

from engines.drivers.protocol import Ask
from kvlingua import hf
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from tests.engines.texts import CHUNK, chunks, objects_of, taken
from tests.engines.vllm.beside_hf import REUSED, answers, cold, cut, spoiled, warm
from tests.engines.vllm.conftest import Launcher, needs_support
from tests.engines.vllm.sliding import LAYERS, SLIDING, make_model, whole_cache
from tests.spoil import flip_byte

pytestmark = needs_support("sliding windows")

CHUNKED = {"max_num_batched_tokens": 160, "long_prefill_token_threshold": 96}
OWN, THEIRS = [cut(seed) for seed in range(90, 93)], [cut(seed) for seed in range(93, 96)]  # vLLM's, transformers'
LONG, SPOILED, SHORT = cut(96, max_tokens=120), cut(97), cut(98, CHUNK + 7)


def test_each_layer_counts_where_it_is_attended_to(launch: Launcher, tmp_path: Path) -> None:
    """An engine without a prefix cache of its own, whose blocks are longer than the window."""
    model, page, store = make_model(tmp_path / "model", window=24), 128, tmp_path / "store"
    right, right_theirs = cold(model, *OWN), cold(model, *THEIRS)
    assert warm(model, store, *THEIRS) == (right_theirs, 0)
    engine = {**CHUNKED, "enable_prefix_caching": False}
    with launch(store, model=tmp_path / "model", page=page, engine=engine) as driver:
        assert driver.switched_on
        assert answers(driver, *OWN) == (right, 0)
        driver.wait_objects(chunks(*THEIRS, *OWN))
        assert answers(driver, *OWN) == (right, taken(page, *OWN))
        assert answers(driver, *THEIRS) == (right_theirs, taken(page, *THEIRS))

        objects = objects_of(store, OWN[0])
        for layer, kind in enumerate(LAYERS):
            with spoiled(objects[-1:] if kind == SLIDING else objects, layer):
                tokens, reused = answers(driver, OWN[0])
                assert (tokens != right[:1], reused) == (True, REUSED), f"layer {layer} is loaded and attended to"
        with spoiled(objects[:-1], *(layer for layer, kind in enumerate(LAYERS) if kind == SLIDING)):
            assert answers(driver, OWN[0]) == (right[:1], REUSED), "what the window has left behind is not"

        flip_byte(objects_of(store, OWN[1])[1])
        tokens, reused = answers(driver, *OWN)
        assert tokens == right, "where a load has failed, too"
        assert reused < taken(page, *OWN)
        driver.wait_objects(chunks(*THEIRS, *OWN))
        assert answers(driver, *OWN) == (right, taken(page, *OWN))
    assert warm(model, store, *OWN) == (right, REUSED * len(OWN))


def test_beside_the_engines_own_prefix_cache(launch: Launcher, tmp_path: Path) -> None:
    """In processes of its own, with blocks shorter than the window."""
    model, page, store = make_model(tmp_path / "model", window=100), 32, tmp_path / "store"
    asks = [*THEIRS, SHORT]
    right, right_spoiled = cold(model, *asks), cold(model, SPOILED)
    assert warm(model, store, *asks, SPOILED) == (right + right_spoiled, 0)
    stored = chunks(*asks, SPOILED)
    with launch(store, model=tmp_path / "model", page=page, processes=True, engine=CHUNKED) as driver:
        assert driver.switched_on
        head = replace(THEIRS[0], prompt=THEIRS[0].prompt[: 4 * CHUNK + 1], max_tokens=1)
        assert driver.generate(head).reused == 4 * CHUNK
        reply = driver.generate(*asks)
        assert [answer.tokens for answer in reply.answers] == right
        assert (reply.local, reply.reused) == (4 * CHUNK, taken(page, *asks) - 4 * CHUNK)
        assert answers(driver, *asks) == (right, 0)

        with spoiled(objects_of(store, SPOILED)[-1:], LAYERS.index(SLIDING)):
            tokens, reused = answers(driver, SPOILED)
            assert (tokens != right_spoiled, reused) == (True, REUSED)

        (said,), _ = answers(driver, LONG)
        assert [said] == cold(model, LONG)
        driver.wait_objects(stored + (len(LONG.prompt) + LONG.max_tokens - 1) // CHUNK)
    turn = Ask([*LONG.prompt, *said, *SHORT.prompt], 8)
    kept = (len(LONG.prompt) + LONG.max_tokens - 1) // CHUNK * CHUNK
    assert warm(model, store, turn) == (cold(model, turn), kept), "what vLLM has generated transformers reuses"
    check_objects(model, store, turn.prompt[:kept])


def check_objects(model: Gemma2ForCausalLM, store: Path, ids: Sequence[int]) -> None:
    """All layers of all these tokens are stored as transformers computes them."""
    with KVCache.open(Config(url=store.as_uri(), lookup_timeout_s=30)) as cache:
        namespace = hf.attach(model, cache).kvlingua.namespace
        hf.detach(model)
        geometry, right = namespace.geometry, whole_cache(model, ids)
        found = [torch.zeros_like(tensor) for tensor in right]
        buffers = [Buffer.of(tensor) for tensor in found]
        pool = format("hf").pool(geometry, geometry.full, page=len(ids), blocks=1, buffers=buffers)
        hit = cache.lookup(namespace, ids)
        assert hit.tokens == len(ids)
        cache.load(hit, pool.view([0], 0, len(ids)), 0, len(ids))
    for one, expected in zip(found, right, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-3)
