"""vLLM on two tensor-parallel ranks, each of which holds half of the heads: what one rank alone has stored two of them
reuse, and the other way round; and when one of the two can't load its heads, both compute. In float32, against the
answers of transformers."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask, Reply
from kvlingua.common.identity.chain import chain_digests
from tests.engines.reference import answers
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text, whole
from tests.engines.vllm.conftest import Launcher
from tests.spoil import flip_byte, negate_v

ONE, TWO, MISSING, FLIPPED, NEGATED = [text(seed) for seed in range(130, 135)]
NO_LOCAL = {"enable_prefix_caching": False}
RANKS = {"processes": True, "engine": {"tensor_parallel_size": 2, **NO_LOCAL}}


def tokens(reply: Reply) -> list[list[int]]:
    return [answer.tokens for answer in reply.answers]


def of_heads(store: Path, ask: Ask, heads: str) -> list[Path]:
    return [next(store.glob(f"*/{digest.hex()}-h{heads}-*")) for digest in chain_digests(ask.prompt, CHUNK)]


def test_two_ranks(launch: Launcher, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with launch(store, page=64, engine=NO_LOCAL) as driver:
        assert tokens(driver.generate(ONE)) == answers(ONE)
        driver.wait_objects(whole(ONE))

    def ask(driver: Driver, one: Ask, reused: int) -> None:
        reply = driver.generate(one)
        assert tokens(reply) == answers(one)
        assert (reply.reused, reply.local, reply.computed) == (reused, 0, length(one) - reused)

    with launch(store, page=32, **RANKS) as driver:
        ask(driver, ONE, taken(32, ONE))  # by one rank, for two
        for one in (TWO, MISSING, FLIPPED, NEGATED):
            ask(driver, one, 0)
        driver.wait_objects(whole(ONE) + 2 * whole(TWO, MISSING, FLIPPED, NEGATED))
        for heads in ("0-2", "2-4"):
            for one in (TWO, MISSING, FLIPPED, NEGATED):
                assert len(of_heads(store, one, heads)) == chunks(one)
        ask(driver, TWO, taken(32, TWO))  # by two, for two

        of_heads(store, MISSING, "2-4")[3].unlink()
        ask(driver, MISSING, 3 * CHUNK)  # one rank has less: both take as much
        flipped = of_heads(store, FLIPPED, "2-4")[5]
        assert flip_byte(flipped) == 1
        ask(driver, FLIPPED, 0)  # one rank fails: both compute
        assert driver.metric_reaches("kvlingua_corrupt_objects_total", 1)
        driver.wait_objects(whole(ONE) + 2 * whole(TWO, MISSING, FLIPPED, NEGATED))
        ask(driver, FLIPPED, taken(32, FLIPPED))  # and it was stored anew

        for path in of_heads(store, NEGATED, "0-2"):
            assert negate_v(path) == 1
        reply = driver.generate(NEGATED)
        assert reply.reused == taken(32, NEGATED)
        assert tokens(reply) != answers(NEGATED), "the stored values are what is used"

        together = [ONE, TWO, MISSING, FLIPPED]
        assert tokens(driver.generate(*together, *together)) == answers(*together) * 2

    assert len(objects_of(store, TWO)) == chunks(TWO)
    with launch(store, page=128, role="consumer", engine=NO_LOCAL) as driver:  # by two ranks, for one
        ask(driver, TWO, taken(128, TWO))
        ask(driver, FLIPPED, taken(128, FLIPPED))


@pytest.mark.thorough
def test_a_head_that_both_ranks_hold(launch: Launcher, tmp_path: Path) -> None:
    """A model with one kv head: each rank has it, one of them stores it, both load it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    one = {"model": tmp_path / "model", "engine": NO_LOCAL}
    two = {"model": tmp_path / "model", **RANKS}

    with launch(tmp_path / "by one", page=64, **one) as driver:
        cold = tokens(driver.generate(ONE))
        driver.wait_objects(whole(ONE))
    with launch(tmp_path / "by two", page=32, **two) as driver:
        assert tokens(driver.generate(ONE)) == cold
        driver.wait_objects(whole(ONE))
    for store, page, options in (("by one", 32, two), ("by two", 64, one)):
        with launch(tmp_path / store, page=page, role="consumer", **options) as driver:
            reply = driver.generate(ONE)
            assert (tokens(reply), reply.reused) == (cold, taken(page, ONE))
        assert negate_v(tmp_path / store) == whole(ONE)
        with launch(tmp_path / store, page=page, role="consumer", **options) as driver:
            reply = driver.generate(ONE)
            assert reply.reused == taken(page, ONE)
            assert tokens(reply) != cold
