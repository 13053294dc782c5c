"""What one vLLM process has stored, another one reuses: at other block sizes, in batches, in chunked prefill, beside
vLLM's own prefix cache, with few blocks. The tokens are transformers'."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engines.drivers.protocol import Ask, Reply
from tests.engines.reference import answers
from tests.engines.texts import CHUNK, chunks, length, taken, text, whole
from tests.engines.vllm.conftest import Launcher
from tests.spoil import negate_v

BY_128 = [text(seed) for seed in range(2, 5)]  # read at block size 128, together, in chunked prefill
BY_32 = [text(seed) for seed in range(10, 13)]
AGAIN = [text(seed, question=1) for seed in range(2, 5)]  # the first documents, another question
LONG = [Ask(ask.prompt, 100) for ask in BY_128]
NEW = text(20)  # nobody stores it
SHORT = text(21, tokens=100)
CHUNKED = {"max_num_batched_tokens": 160, "long_prefill_token_threshold": 96}


def right(reply: Reply, *asks: Ask) -> bool:
    """Whether these are the tokens that are right."""
    return [answer.tokens for answer in reply.answers] == answers(*asks)


@pytest.fixture(scope="module")
def stored(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store filled by two engines."""
    folder = tmp_path_factory.mktemp("stored") / "store"
    no_local = {**CHUNKED, "enable_prefix_caching": False}
    with launch(folder, processes=True, page=128, role="producer", engine=no_local) as driver:
        assert right(driver.generate(*BY_128), *BY_128)
        driver.wait_objects(chunks(*BY_128))
        assert driver.generate(BY_128[0]).reused == 0, "a producer loads nothing"
    with launch(folder, page=32, engine=no_local) as driver:
        for ask in (*BY_32, SHORT):
            first = driver.generate(ask)
            assert right(first, ask)
            assert (first.reused, first.computed) == (0, length(ask))
        driver.wait_objects(chunks(*BY_128, *BY_32, SHORT))
        second = driver.generate(*BY_32, SHORT)
        assert right(second, *BY_32, SHORT)
        assert second.reused == taken(32, *BY_32, SHORT)
        assert second.computed == length(*BY_32, SHORT) - second.reused
        driver.generate(NEW)
        everything = whole(*BY_128, *BY_32, SHORT, NEW)
        driver.wait_objects(everything)
    assert driver.objects() == everything, "whole chunks of prompts and what was generated, each once"
    return folder


def test_block_128_to_32(launch: Launcher, stored: Path) -> None:
    """In a batch, in chunked prefill, beside what vLLM has itself; and requests that are given up meanwhile."""
    with launch(stored, processes=True, page=32, role="consumer", engine=CHUNKED) as driver:
        before = driver.objects()
        reply = driver.generate(*BY_128)
        assert right(reply, *BY_128)
        assert reply.reused == taken(32, *BY_128) > 0
        assert reply.reused + reply.computed == reply.prompt_tokens == length(*BY_128)
        again = driver.generate(*BY_128)
        assert right(again, *BY_128)
        assert again.reused == 0
        assert again.local >= taken(32, *BY_128), "what was loaded is in vLLM's own prefix cache"
        head = Ask(BY_32[0].prompt[:200], 1, options={"sampling": {"skip_reading_prefix_cache": True}})
        assert driver.generate(head).computed == 200
        beside = driver.generate(*BY_32)
        assert right(beside, *BY_32)
        assert (beside.local, beside.reused) == (192, taken(32, *BY_32) - 192), "a local hit of 6 blocks is kept"
        for steps in (0, 1, 2, 3):
            driver.call("abort_after", prompt=NEW.prompt, steps=steps)
        assert right(driver.generate(NEW, *AGAIN), NEW, *AGAIN)
        assert driver.objects() == before, "a consumer stores nothing"


def test_block_32_to_128(launch: Launcher, stored: Path) -> None:
    with launch(stored, page=128, role="consumer") as driver:
        for ask in BY_32:
            reply = driver.generate(ask)
            assert right(reply, ask)
            assert reply.reused == taken(128, ask) > 0
            assert reply.computed == length(ask) - taken(128, ask)


def test_few_blocks(launch: Launcher, stored: Path, tmp_path: Path) -> None:
    """Requests are preempted while they generate, and resumed in other blocks, for which their prefix is loaded."""
    blocks = {"num_gpu_blocks_override": 52, "enable_prefix_caching": False, "max_num_batched_tokens": 160}
    shutil.copytree(stored, tmp_path / "store")
    with launch(tmp_path / "store", page=32, max_model_len=1024, engine=blocks) as driver:
        for _ in range(2):
            assert right(driver.generate(*LONG), *LONG)
        assert driver.call("metric", name="vllm:num_preemptions") > 0, "else the test shows nothing"
        assert driver.metric_reaches("kvlingua_tokens_reused_total", 2 * taken(32, *LONG) + CHUNK), (
            "loaded when resumed"
        )


def test_negated_values_change_the_tokens(launch: Launcher, stored: Path, tmp_path: Path) -> None:
    """The control of all tests here: what is stored is what is used."""
    shutil.copytree(stored, tmp_path / "store")
    assert negate_v(tmp_path / "store") > 0
    with launch(tmp_path / "store", page=32, role="consumer") as driver:
        for ask in BY_128:
            reply = driver.generate(ask)
            assert reply.reused == taken(32, ask)
            assert not right(reply, ask)


@pytest.mark.thorough
def test_the_kernel_for_odd_head_sizes(launch: Launcher, tmp_path: Path) -> None:
    """Heads of 80 dims make vLLM use another kernel (vec16) than those of 32 or 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=320,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=80,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    options = {"model": tmp_path / "model", "engine": {"enable_prefix_caching": False}}
    with launch(tmp_path / "store", page=32, **options) as driver:
        cold = [answer.tokens for answer in driver.generate(*BY_32).answers]
        driver.wait_objects(chunks(*BY_32))
    with launch(tmp_path / "store", page=64, **options) as driver:
        assert "layout vllm_cpu_vec16" in driver.log_text()
        reply = driver.generate(*BY_32)
        assert [answer.tokens for answer in reply.answers] == cold
        assert reply.reused == taken(64, *BY_32)
