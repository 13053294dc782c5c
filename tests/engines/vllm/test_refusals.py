"""What the adapter can't do it refuses at start, in one line, and the engine runs on as without it."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from demo.job import MODEL
from engines.drivers.driver import Driver, DriverError
from tests.engines.texts import length, taken, text, whole
from tests.engines.vllm.conftest import Launcher
from tests.engines.vllm.sliding import make_model

TEXTS = [text(50), text(51)]


def answers(driver: Driver) -> list[list[int]]:
    """Of the same texts twice: the second time vLLM has them in its own prefix cache."""
    return [answer.tokens for _ in range(2) for answer in driver.generate(*TEXTS).answers]


def test_it_is_off_and_the_engine_as_ever(launch: Launcher, tmp_path: Path) -> None:
    """Here with one block table for layers with a sliding window and all others."""
    make_model(tmp_path / "model", window=64)
    options = {"model": tmp_path / "model", "engine": {"disable_hybrid_kv_cache_manager": True}}
    with launch(**options) as driver:
        cold = answers(driver)
    with launch(tmp_path / "store", **options) as driver:
        assert answers(driver) == cold
        assert len(said_off(driver, "off: .*FullAttentionSpec, window 64")) == 1
    assert not (tmp_path / "store").exists() or driver.objects() == 0


LOOKUP = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        pytest.param(
            {"engine": {"speculative_config": LOOKUP}},
            "off: speculative decoding",
            id="speculative",
            marks=pytest.mark.thorough,
        ),
        pytest.param({"engine": {"load_format": "dummy"}}, "off: .*dummy", id="dummy"),
    ],
)
def test_it_is_off_and_the_engine_answers(launch: Launcher, tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with launch(tmp_path / "store", **options) as driver:
        assert not driver.switched_on
        replies = [driver.generate(*TEXTS) for _ in range(2)]
        assert [(reply.reused, len(reply.answers)) for reply in replies] == [(0, 2)] * 2
        assert [reply.local + reply.computed for reply in replies] == [length(*TEXTS)] * 2
        assert len(said_off(driver, line)) == len(said_off(driver, "off: ")) == 1
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with another attention."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: -weight if "v_proj" in name else weight for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["reload_weights", "reset_weights"])
def test_other_weights_end_it(launch: Launcher, other_weights: Path, tmp_path: Path, method: str) -> None:
    with launch(tmp_path / "store", engine={"enable_prefix_caching": False}) as driver:
        before = driver.generate(TEXTS[0]).answers[0].tokens
        driver.wait_objects(whole(TEXTS[0]))
        assert driver.generate(TEXTS[0]).reused == taken(32, TEXTS[0])
        arguments = {"weights_path": str(other_weights)} if method == "reload_weights" else {}
        driver.call("collective_rpc", method=method, arguments=arguments)
        asks = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]]
        replies = [driver.generate(ask) for ask in asks]
        assert [reply.computed for reply in replies] == [length(ask) for ask in asks]
        assert before not in [replies[number].answers[0].tokens for number in (0, 1, 3)], "the weights are others"
        assert len(said_off(driver, f"off: .*weights.*{method}")) == 1
        assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="weights")
    assert driver.objects() == whole(TEXTS[0])


@pytest.mark.parametrize(
    "compiled", [pytest.param(False, id="eager"), pytest.param(True, id="compiled", marks=pytest.mark.thorough)]
)
def test_a_forward_that_fails_ends_it(launch: Launcher, tmp_path: Path, compiled: bool) -> None:
    """vLLM has the connector save after that, too, and goes on with blocks that were never filled."""
    engine = {"enable_prefix_caching": False, "max_num_batched_tokens": 160, "enforce_eager": not compiled}
    with launch(tmp_path / "store", engine=engine) as driver:
        driver.generate(TEXTS[0])
        driver.wait_objects(whole(TEXTS[0]))
        assert driver.generate(TEXTS[0]).reused == taken(32, TEXTS[0]), "in this mode it is seen that a forward ends"
        if compiled:
            return  # what is compiled calls no layer of its own
        driver.call("collective_rpc", method="tests.engines.vllm.in_worker:break_layer", arguments={"layer": 1})
        with pytest.raises(DriverError, match="can't allocate memory"):
            driver.generate(TEXTS[1])
        driver.call("collective_rpc", method="tests.engines.vllm.in_worker:mend_layers")
        assert driver.generate(TEXTS[0]).reused == 0
        assert len(said_off(driver, "off: a forward")) == 1
        assert driver.metric_reaches("kvlingua_refusals_total", 1, reason="forward")
    assert driver.objects() == whole(TEXTS[0])


def test_an_unknown_key_is_an_error(launch: Launcher, tmp_path: Path) -> None:
    with (
        pytest.raises(DriverError, match="did you mean 'chunk_tokens'"),
        launch(tmp_path / "store", config={"chunk_token": 32}),
    ):
        pass


def said_off(driver: Driver, line: str) -> list[str]:
    return [text for text in driver.log_text().splitlines() if "kvlingua" in text and re.search(line, text)]
