"""Models whose layers attend to a sliding window and to all tokens by turns (Gemma 2): vLLM has a block table for each
kind, and drops what the window has left behind. What is stored holds all layers of every token, as transformers
computes them; what is loaded is right in both kinds."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM

from engines.drivers.protocol import Ask
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.identity.fingerprint import FingerprintTask
from kvlingua.common.identity.model import describe_model
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from tests.engines.texts import CHUNK, chunks, length, objects_of, taken, text
from tests.engines.vllm.conftest import Launcher
from tests.spoil import flip_byte, negate_v

pytestmark = pytest.mark.skip(
    "refused (adapters/vllm/versions.py) until this passes with a model whose tokens depend on what is loaded: "
    "the one here answers one token whatever is loaded"
)
WINDOW = 100  # no multiple of a block or chunk, and less than the texts are long
TEXTS = [text(seed) for seed in range(90, 93)]
ENGINE = {"max_num_batched_tokens": 160, "long_prefill_token_threshold": 96}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gemma2ForCausalLM]:
    """A random model of seven layers, of which those with full attention are fewer: vLLM makes more than two groups."""
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    sliding, full = "sliding_attention", "full_attention"
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=WINDOW,
        layer_types=[sliding, full, sliding, sliding, sliding, full],
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    model = Gemma2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    return folder, model


def test_windows(launch: Launcher, gemma: tuple[Path, Gemma2ForCausalLM], tmp_path: Path) -> None:
    folder, model = gemma
    store = tmp_path / "store"
    with launch(model=folder, engine={"enable_prefix_caching": False}) as driver:
        cold = [driver.generate(ask).answers[0].tokens for ask in TEXTS]
    with launch(store, model=folder, page=128, engine=ENGINE) as driver:
        assert driver.switched_on
        assert [answer.tokens for answer in driver.generate(*TEXTS).answers] == cold
        driver.wait_objects(chunks(*TEXTS))

    description = describe_model(folder, compute_dtype="float32", kv_dtype="float32", windows=True)
    digest = FingerprintTask(description, Config(), tensors_compared=True).wait(None)
    assert digest is not None
    namespace = description.namespace(digest, chunk_tokens=CHUNK)
    with KVCache(Config(url=store.as_uri())) as cache:
        ids = TEXTS[0].prompt[: len(TEXTS[0].prompt) // CHUNK * CHUNK]
        right = whole_cache(model, ids)
        loaded = [torch.zeros_like(tensor) for tensor in right]
        geometry, buffers = namespace.geometry, [Buffer.of(tensor) for tensor in loaded]
        pool = format("hf").pool(geometry, geometry.full, page=len(ids), blocks=1, buffers=buffers)
        hit = cache.lookup(namespace, ids)
        assert hit.tokens == len(ids)
        cache.load(hit, pool.view([0], 0, len(ids)), 0, len(ids))
        for found, expected in zip(loaded, right, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    with launch(store, model=folder, page=32, role="consumer", processes=True, engine=ENGINE) as driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(32, *TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold
        again = driver.generate(*TEXTS)
        assert [answer.tokens for answer in again.answers] == cold, "beside vLLM's own prefix cache"
        assert again.local + again.reused + again.computed == length(*TEXTS)
        head = Ask(TEXTS[0].prompt[:200], 1, cache_salt="a")
        assert driver.generate(head).computed == 200

    spoiled = tmp_path / "spoiled"
    shutil.copytree(store, spoiled)
    negate_v(spoiled)
    with launch(spoiled, model=folder, page=32, role="consumer") as driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(32, *TEXTS)
        assert all(answer.tokens != tokens for answer, tokens in zip(reply.answers, cold, strict=True))

    for path in objects_of(store, TEXTS[1])[1:2]:
        flip_byte(path)
    with launch(store, model=folder, page=32, engine={**ENGINE, "enable_prefix_caching": False}) as driver:
        reply = driver.generate(*TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold, "after a load that failed"
        assert reply.reused < taken(32, *TEXTS)
        driver.wait_objects(chunks(*TEXTS))
        mended = driver.generate(*TEXTS)
        assert [answer.tokens for answer in mended.answers] == cold
        assert mended.reused == taken(32, *TEXTS)


def whole_cache(model: Gemma2ForCausalLM, ids: list[int]) -> list[torch.Tensor]:
    """Keys and values [head, token, dim] of each layer as transformers computes them, of all tokens."""
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(torch.tensor([ids]), past_key_values=cache)
    found = [plane[0].contiguous() for layer in cache.layers for plane in (layer.keys, layer.values)]
    assert {tensor.shape[1] for tensor in found} == {len(ids)}
    return found
