"""What kvlingua refuses at start: one line says so, and SGLang runs as if the flag weren't there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.job import MODEL
from engines.drivers.samples import total
from tests.engines.sglang.conftest import Launcher
from tests.engines.sglang.in_engine import run
from tests.engines.texts import length, text

TEXT = text(90)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("arguments")
    repository = folder / "hub" / "models--some--model"
    shutil.copytree(MODEL, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    settings = {"HF_HUB_CACHE": str(folder / "hub"), "KVLINGUA_METRICS_DIR": str(folder / "metrics")}
    found = run("arguments_process.py", str(MODEL), "some/model", **settings)
    return found | {"refusals": total(folder / "metrics", "kvlingua_refusals_total", {"adapter": "sglang"})}


def test_arguments_that_are_not_understood_are_named(report: dict[str, Any]) -> None:
    assert report["plain"] == report["LoRA"] == report["two ranks"] == "understood"
    assert len(report["cases"]) > 10
    for name, case in report["cases"].items():
        assert case["named"] in case["outcome"], f"{name}: {case['outcome']}"


def test_a_linker_takes_pages_as_long_as_chunks(report: dict[str, Any]) -> None:
    found = report["linked"]
    assert found["pages as chunks"] == "understood"
    assert "--page-size is 16, chunk_tokens is 64" in found["shorter pages"]
    assert "--enable-streaming-session" in found["streaming sessions"]
    assert "--enable-lora" in found["LoRA"]
    assert "--enable-unified-cache-external-linker" in found["beside the flag"]
    assert "SGLang's hashes of pages aren't the digests of chunks" in found["other hashes"]


def test_the_entry_point_may_be_called_twice(report: dict[str, Any]) -> None:
    assert report["registered"] == ["kvlingua"]


def test_weights_that_may_come_from_elsewhere_have_no_fingerprint(report: dict[str, Any]) -> None:
    """SGLang looks for a hub id's weights in --download-dir first; a folder's it reads from there."""
    assert report["places"]["hub"] == report["places"]["folder"] == "understood"
    assert "may come from elsewhere instead of the hub's cache" in report["places"]["hub, elsewhere"]


def test_a_release_that_was_never_run_is_named(report: dict[str, Any]) -> None:
    assert report["never run"].startswith("SGLang 0.5.19 was never run with kvlingua, supported is 0.5.20, ")


def test_transformers_implementations_are_not_sglangs(report: dict[str, Any]) -> None:
    assert report["own"] == [True, False]


def test_a_context_beyond_what_rope_scales(report: dict[str, Any]) -> None:
    found = report["contexts"]
    assert {name for name, said in found.items() if said != "understood"} == {"linear, longer"}
    assert "a context of 4097 tokens is longer than what rope type 'linear' scales" in found["linear, longer"]


def test_an_unforeseen_error_switches_off(report: dict[str, Any]) -> None:
    assert report["unforeseen"] is None
    said = [line for line in report["stderr"].splitlines() if "kvlingua: WARNING: off: " in line]
    assert len(said) == 1
    assert "an unexpected error at start" in said[0]
    assert "AttributeError" in report["stderr"]
    assert report["refusals"] > 0


def dummy_weights(folder: Path) -> dict[str, Any]:
    return {"engine": {"load_format": "dummy"}}


def sliding_window(folder: Path) -> dict[str, Any]:
    """The same weights as a Mistral, which has a window where a Llama has none."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": folder}


@pytest.mark.parametrize(
    ("case", "line"),
    [
        (dummy_weights, "dummy"),
        pytest.param(sliding_window, "a sliding window of 128 is not supported yet", marks=pytest.mark.thorough),
    ],
)
def test_the_engine_runs_without_cache(
    launch: Launcher, tmp_path: Path, case: Callable[[Path], dict[str, Any]], line: str
) -> None:
    with launch(tmp_path / "store", **case(tmp_path / "model")) as driver:
        first, second = driver.generate(TEXT), driver.generate(TEXT)
        assert first.answers[0].tokens == second.answers[0].tokens
        assert (first.reused, first.local, first.computed) == (0, 0, length(TEXT))
        assert (second.reused, second.local) == (0, length(TEXT) // 16 * 16), "SGLang's own prefix cache works"
        said = [each for each in driver.log_text().splitlines() if "off: " in each]
        assert len(said) == 1, said
        assert line in said[0]
        assert "impl=UnifiedRadixCache" in driver.log_text()
        assert driver.metric_reaches("kvlingua_refusals_total", 1, adapter="sglang")
    assert not (tmp_path / "store").exists()
