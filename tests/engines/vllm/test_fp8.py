"""KV in fp8, whose scales lie on vLLM's layers and not in its cache: stored and loaded as it is, at other block sizes
and ranks, and found by nobody who keeps KV in another type."""

import shutil
from pathlib import Path

import pytest

from engines.drivers.driver import Driver
from tests.engines.texts import length, taken, text, whole
from tests.engines.vllm.conftest import Launcher, needs_support
from tests.spoil import negate_v

FLAGS = Path("/proc/cpuinfo").read_text()
pytestmark = [
    pytest.mark.skipif(
        "avx512f" not in FLAGS and "amx_tile" not in FLAGS,
        reason="vLLM has kernels for fp8 only on CPUs with AVX-512 or AMX, and this is none",
    ),
    needs_support("KV in fp8"),
]
TEXTS = [text(seed) for seed in range(60, 63)]
FP8 = {"kv_cache_dtype": "fp8", "enable_prefix_caching": False}
NOT_ON_AMX = pytest.mark.skipif(
    "amx_tile" in FLAGS, reason="in bfloat16 vLLM has another kernel on CPUs with AMX, which kvlingua refuses"
)
E5M2 = {**FP8, "kv_cache_dtype": "fp8_e5m2"}


def stored(driver: Driver) -> list[list[int]]:
    """Let it read the texts, and wait until they are stored; its answers."""
    with driver:
        assert driver.switched_on
        cold = [driver.generate(ask) for ask in TEXTS]
        assert sum(reply.reused for reply in cold) == 0
        driver.wait_objects(whole(*TEXTS))
    return [reply.answers[0].tokens for reply in cold]


def check_reused(driver: Driver, page: int, cold: list[list[int]]) -> None:
    with driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(page, *TEXTS)
        assert [answer.tokens for answer in reply.answers] == cold


def check_missed(driver: Driver) -> None:
    with driver:
        assert driver.switched_on
        reply = driver.generate(*TEXTS)
        assert (reply.reused, reply.computed) == (0, length(*TEXTS)), "it hit what was kept in another type"


def check_spoiled(driver: Driver, page: int, cold: list[list[int]]) -> None:
    """Negated values, which are valid, are what is used."""
    with driver:
        for ask, tokens in zip(TEXTS, cold, strict=True):
            reply = driver.generate(ask)
            assert reply.reused == taken(page, ask)
            assert reply.answers[0].tokens != tokens


def test_fp8_is_stored_and_loaded_as_it_is(launch: Launcher, tmp_path: Path) -> None:
    store = tmp_path / "store"
    cold = stored(launch(store, page=128, engine=FP8))
    check_reused(launch(store, page=32, engine={**FP8, "kv_cache_dtype": "fp8_e4m3"}), 32, cold)
    check_missed(launch(store, page=32, role="consumer", engine={**FP8, "kv_cache_dtype": "auto"}))
    assert negate_v(store) == whole(*TEXTS)
    check_spoiled(launch(store, page=32, role="consumer", engine=FP8), 32, cold)


@pytest.mark.thorough
def test_e5m2(launch: Launcher, tmp_path: Path) -> None:
    cold = stored(launch(tmp_path / "store", page=32, engine=E5M2))
    check_reused(launch(tmp_path / "store", page=64, engine=E5M2), 64, cold)
    check_missed(launch(tmp_path / "store", page=32, role="consumer", engine=FP8))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=NOT_ON_AMX), "float16"])
def test_other_dtypes_to_compute_with(launch: Launcher, tmp_path: Path, dtype: str) -> None:
    """Of the answers the first word is compared, of which the model is sure: the others may fall by rounding."""
    cold = stored(launch(tmp_path / "store", page=128, dtype=dtype, engine=FP8))
    with launch(tmp_path / "store", page=32, role="consumer", dtype=dtype, engine=FP8) as driver:
        reply = driver.generate(*TEXTS)
        assert reply.reused == taken(32, *TEXTS)
        assert [answer.tokens[0] for answer in reply.answers] == [tokens[0] for tokens in cold]
    check_missed(launch(tmp_path / "store", page=32, role="consumer", engine=FP8))


@pytest.mark.thorough
def test_two_ranks(launch: Launcher, tmp_path: Path) -> None:
    """One rank's by two, and two ranks' by one."""
    ranks = {"processes": True, "engine": {**FP8, "tensor_parallel_size": 2}}
    cold = stored(launch(tmp_path / "one", page=128, engine=FP8))
    check_reused(launch(tmp_path / "one", page=32, role="consumer", **ranks), 32, cold)
    with launch(tmp_path / "two", page=32, **ranks) as driver:
        assert [driver.generate(ask).answers[0].tokens for ask in TEXTS] == cold
        driver.wait_objects(2 * whole(*TEXTS))
    spoiled = tmp_path / "spoiled"
    shutil.copytree(tmp_path / "two", spoiled)
    check_reused(launch(tmp_path / "two", page=64, role="consumer", engine=FP8), 64, cold)
    assert negate_v(spoiled) == 2 * whole(*TEXTS)
    check_spoiled(launch(spoiled, page=64, role="consumer", engine=FP8), 64, cold)
