"""Layers with a sliding window: stored with all that fell out of it, found where the window is the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, StaticCache

from tests import spoil
from tests.adapters.hf.tiny import cold, left_padded, llama_config, prompt, sharpened, warm

Attached = Callable[..., Any]
WINDOW = 24


def mistral(window: int | None = WINDOW) -> Any:
    """The same weights whatever the window."""
    values = {
        key: value for key, value in llama_config().to_dict().items() if key not in ("model_type", "architectures")
    }
    return sharpened(MistralForCausalLM(MistralConfig(**(values | {"sliding_window": window}))))


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"prefill_chunk_size": 10},
        {"max_new_tokens": 40},
    ],
    ids=str,
)
def test_as_without_a_store(attached: Attached, tmp_path: Path, options: dict[str, Any]) -> None:
    import transformers

    if "prefill_chunk_size" in options and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("transformers reads a prompt in chunks wrongly behind a filled cache before 5.23")
    model = attached(model=mistral())
    batch = left_padded(prompt(60, seed=1), prompt(70, seed=2))

    def seeded(generate: Callable[..., Any], model: Any) -> Any:
        torch.manual_seed(3)
        return generate(model, **batch, **options)

    expected = seeded(cold, model)
    for reused in (0, 58, 58):
        assert torch.equal(seeded(warm, model), expected)
        assert last(model) == (None, reused)
    assert spoil.negate_v(tmp_path / "store") > 0
    other = attached(model=mistral())
    assert not torch.equal(seeded(warm, other), expected)
    assert last(other) == (None, 58)


def test_the_returned_cache_holds_the_window_only(attached: Attached) -> None:
    model, ids = attached(model=mistral()), prompt(70)
    expected = cold(model, ids, return_dict_in_generate=True).past_key_values
    for reused in (0, 64):
        past = warm(model, ids, return_dict_in_generate=True).past_key_values
        assert last(model) == (None, reused)
        for layer, wanted in zip(past.layers, expected.layers, strict=True):
            assert layer.keys.shape == wanted.keys.shape == (1, 2, WINDOW - 1, 32)
            assert not layer.record_past
            assert layer.get_seq_length() == wanted.get_seq_length() == 77
            torch.testing.assert_close(layer.keys, wanted.keys)


def test_another_window_is_another_model(attached: Attached) -> None:
    ids, namespaces = prompt(70), set()
    for window in (WINDOW, 32, None):
        model = attached(model=mistral(window))
        namespaces.add(model.kvlingua.namespace)
        assert torch.equal(warm(model, ids), cold(model, ids))
        assert last(model) == (None, 0)
    assert len(namespaces) == 3


def test_a_configuration_that_changes_is_seen(attached: Attached) -> None:
    model, ids = attached(model=mistral()), prompt(70)
    warm(model, ids)
    before, text = model.kvlingua.namespace, copy.deepcopy(model.config)
    model.config.sliding_window = 32
    assert model.kvlingua.namespace != before
    model.config.sliding_window = text.sliding_window
    assert model.kvlingua.namespace == before


def test_what_a_static_window_dropped_is_not_stored(attached: Attached, tmp_path: Path) -> None:
    """But it takes what another cache's call has stored."""
    model, ids = attached(model=mistral()), prompt(70)
    expected = cold(model, ids)
    for _ in range(2):
        assert torch.equal(warm(model, ids, cache_implementation="static"), expected)
        assert last(model) == (None, 0)
    assert spoil.objects(tmp_path / "store") == []
    warm(model, ids)
    for options in ({"cache_implementation": "static"}, {"past_key_values": StaticCache(model.config, 100)}):
        assert torch.equal(warm(model, ids, **options), expected)
        assert last(model) == (None, 64)
