"""Both sides of the adapter with vLLM's own classes, without an engine: what they decide, and what they say when
something fails."""

from typing import Any

import pytest

from tests.engines.vllm.in_engine import run

PASSING = {
    "multimodal": "multimodal",
    "pooling": "pooling",
    "embeds": "prompt_embeds",
    "mixed": "prompt_embeds",
    "lora": "lora",
    "growing": "streaming_input",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("adapter_process.py", str(tmp_path_factory.mktemp("adapter")))


def test_kinds_of_requests(report: dict[str, Any]) -> None:
    """With the same token ids as what is stored: only the ordinary request is promised it. With others: only the
    ordinary ones are stored."""
    found = report["requests"]
    assert found["passes"] == {"plain": None, "salted": None, **PASSING}
    assert found["promised"] == {"plain": 256, "salted": 0, **dict.fromkeys(PASSING, 0)}
    assert found["promised of others"] == {"plain": 0, "salted": 0, **dict.fromkeys(PASSING, 0)}
    assert found["ordered"] == ["plain", "salted"]


def test_blocks_that_are_not_understood(report: dict[str, Any]) -> None:
    """A load that was promised and can't be ordered reaches the worker, as one that fails."""
    assert report["requests"]["broken load"] == ["plain", None]


def test_blocks_are_held_for_copies(report: dict[str, Any]) -> None:
    """Not those of a request that was preempted since, which vLLM has given away, nor where nothing is stored."""
    assert report["requests"]["held"] == [True, False, False]


def test_no_cache_without_seeing_resets(report: dict[str, Any]) -> None:
    assert report["requests"]["unwatched"]
    assert report["requests"]["after a reset"] is None


def test_settings_that_are_refused(report: dict[str, Any]) -> None:
    found = report["settings"]
    for name in ("plain", "plain, asked for async scheduling", "download_dir and a folder", "a hub's model"):
        assert found.pop(name) == []
    assert len(found) == 7
    for name, refusals in found.items():
        assert len(refusals) == 1
        assert name in refusals[0]


def test_weights_that_change_are_seen(report: dict[str, Any]) -> None:
    found = report["live weights"]
    assert {what for what, unchanged in found.items() if unchanged} == {"nothing", "a forward"}
    assert len(found) == 9


def test_only_models_of_vllms_own(report: dict[str, Any]) -> None:
    assert report["model classes"]["own"] == "fits"
    assert report["model classes"]["plug-in"].startswith("model_code: ")


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("unexpected", "an unexpected error at start"),
        ("unwatched", "a reset of vLLM's prefix cache would go unnoticed"),
        ("worker", "an unexpected error at start"),
        ("register", "KV cache layers [] aren't numbered"),
    ],
)
def test_whatever_fails_at_start_is_said_once(report: dict[str, Any], case: str, line: str) -> None:
    lines = report["stderr"].partition(f"case: {case}\n")[2].partition("case: ")[0].splitlines()
    (said,) = [one for one in lines if one.startswith("kvlingua: WARNING: off: ")]
    assert line in said


def test_weights_are_watched_once_and_nothing_is_kept(report: dict[str, Any]) -> None:
    assert report["connectors"]["wrappers"] == 1
    assert report["connectors"]["alive"] == 0
