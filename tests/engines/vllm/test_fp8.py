"""KV in fp8, whose scales lie on vLLM's layers and not in its cache: stored and loaded as it is, at other block sizes,
and found by nobody who keeps KV in another type."""

import shutil
from pathlib import Path

import pytest

from tests.engines.texts import chunks, length, taken, text
from tests.engines.vllm.conftest import Launcher
from tests.spoil import negate_v

pytestmark = pytest.mark.skip(
    "fp8 is off until this was run: vLLM has kernels for it only on CPUs with AVX-512 or AMX, and none was at hand"
    " (there: name the release in RUN_WITH of adapters/vllm/versions.py)"
)
TEXTS = [text(seed) for seed in range(60, 63)]
FP8 = {"kv_cache_dtype": "fp8", "enable_prefix_caching": False}


def test_fp8_is_stored_and_loaded_as_it_is(launch: Launcher, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with launch(store, page=128, engine=FP8) as driver:
        cold = [driver.generate(ask).answers[0].tokens for ask in TEXTS]
        driver.wait_objects(chunks(*TEXTS))
        assert driver.switched_on
    with launch(store, page=32, engine={**FP8, "kv_cache_dtype": "fp8_e4m3"}) as driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(32, *TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold
    for other in ("auto", "fp8_e5m2"):
        with launch(store, page=32, role="consumer", engine={**FP8, "kv_cache_dtype": other}) as driver:
            assert driver.switched_on
            reply = driver.generate(*TEXTS)
            assert (reply.reused, reply.computed) == (0, length(*TEXTS)), f"{other} hit what was kept as e4m3"
    spoiled = tmp_path / "spoiled"
    shutil.copytree(store, spoiled)
    assert negate_v(spoiled) == chunks(*TEXTS)
    with launch(spoiled, page=32, role="consumer", engine=FP8) as driver:
        for ask, tokens in zip(TEXTS, cold, strict=True):
            reply = driver.generate(ask)
            assert reply.reused == taken(32, ask)
            assert reply.answers[0].tokens != tokens


def test_e5m2(launch: Launcher, tmp_path: Path) -> None:
    engine = {**FP8, "kv_cache_dtype": "fp8_e5m2"}
    with launch(tmp_path / "store", page=32, engine=engine) as driver:
        cold = [driver.generate(ask).answers[0].tokens for ask in TEXTS]
        driver.wait_objects(chunks(*TEXTS))
    with launch(tmp_path / "store", page=64, engine=engine) as driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(64, *TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold
