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
    "growing": "streaming_input",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("adapter_process.py", str(tmp_path_factory.mktemp("adapter")))


def test_kinds_of_requests(report: dict[str, Any]) -> None:
    """With the same token ids as what is stored: only the ordinary request is promised it. With others: only the
    ordinary ones are stored."""
    found = report["requests"]
    others = {"salted": 0, "lora": 0, **dict.fromkeys(PASSING, 0)}  # the adapter's folder isn't there
    assert found["passes"] == {"plain": None, "salted": None, "lora": None, **PASSING}
    assert found["promised"] == {"plain": 256, **others}
    assert found["promised of others"] == {"plain": 0, **others}
    assert found["ordered"] == ["plain", "salted"]


def test_a_step_waits_once_for_all_lookups(report: dict[str, Any]) -> None:
    assert report["requests"]["waits"] == [0.005, 0, 0]


def test_blocks_that_are_not_understood(report: dict[str, Any]) -> None:
    """A load that was promised and can't be ordered reaches the worker, as one that fails."""
    assert report["requests"]["broken load"] == ["plain", None]


def test_blocks_are_held_for_copies(report: dict[str, Any]) -> None:
    """Not those of a request that was preempted since, which vLLM has given away, nor where nothing is stored."""
    assert report["requests"]["held"] == [True, False, False]
    assert report["requests"]["freed"] == ["salted"], "once"


def test_no_cache_without_seeing_resets(report: dict[str, Any]) -> None:
    assert report["requests"]["unwatched"]
    assert report["requests"]["after a reset"] is None
    assert report["requests"]["refused reset"] == [False, ["called"], True], "one that vLLM refuses counts, too"


def test_settings_that_are_refused(report: dict[str, Any]) -> None:
    found = report["settings"]
    for name in ("plain", "plain, asked for async scheduling", "download_dir and a folder", "a hub's model"):
        assert found.pop(name) == []
    assert len(found) == 8
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
        ("within another", "within another connector it was never run"),
    ],
)
def test_whatever_fails_at_start_is_said_once(report: dict[str, Any], case: str, line: str) -> None:
    lines = report["stderr"].partition(f"case: {case}\n")[2].partition("case: ")[0].splitlines()
    (said,) = [one for one in lines if one.startswith("kvlingua: WARNING: off: ")]
    assert line in said


# What else vLLM's worker can be told, of versions 0.28 to 0.32: nothing of it changes the model's weights. (LoRA
# adapters are known by their files.)
HARMLESS = """
    add_lora annotate_profile check_health checkpoint_prepare compile_or_warm_up_model compute_weight_checksums
    determine_available_memory execute_dummy_batch execute_model get_cache_block_size_bytes get_compilation_match_table
    get_draft_model get_encoder_timing_stats get_kv_cache_spec get_kv_connector_handshake_metadata get_model_inspection
    get_supported_kv_cache_layouts get_supported_tasks init_device initialize_from_config list_loras pin_lora profile
    release_late_interaction_query_cache remove_lora reset_encoder_cache reset_mm_cache sample_tokens save_sharded_state
    save_tensorized_model set_kv_cache_layout shutdown shutdown_weight_transfer_engine supports_draft_weight_updates
    synchronize_device take_draft_token_ids update_max_model_len
""".split()


def test_every_method_of_the_worker_is_known(report: dict[str, Any]) -> None:
    """One that a new version adds must be looked at: whether it writes weights."""
    writers = set(report["writers"])
    assert set(report["worker methods"]) - set(HARMLESS) <= writers
    assert not set(HARMLESS) & writers


def test_weights_are_watched_once_and_nothing_is_kept(report: dict[str, Any]) -> None:
    assert report["connectors"]["wrappers"] == 1
    assert report["connectors"]["alive"] == 0


def test_an_end_in_good_order_stores_what_was_ordered(report: dict[str, Any]) -> None:
    """Also what is still being copied out of vLLM's blocks."""
    assert report["connectors"]["stored last"] == 4
