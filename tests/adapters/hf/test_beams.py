"""Several rows of the cache for one prompt: beams, which change places, and samples, which don't."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import spoil
from tests.adapters.hf.tiny import cold, left_padded, prompt, warm

Attached = Callable[..., Any]

WAYS = {
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
    "sampled beams": {"num_beams": 2, "do_sample": True, "temperature": 2.0},
    "samples": {"num_return_sequences": 3, "do_sample": True, "temperature": 2.0},
    "beams in chunks": {"num_beams": 2, "prefill_chunk_size": 20},
}


def seeded(generate: Callable[..., Any], model: Any, **arguments: Any) -> Any:
    torch.manual_seed(7)
    return generate(model, **arguments)


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


@pytest.mark.parametrize("way", WAYS)
def test_as_without_a_cache(attached: Attached, tmp_path: Path, way: str) -> None:
    if "prefill_chunk_size" in WAYS[way]:
        import transformers

        if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
            pytest.skip("transformers reads a prompt in chunks wrongly behind a filled cache before 5.23")
    model = attached()
    batch = left_padded(prompt(60, seed=1), prompt(70, seed=2))
    expected = seeded(cold, model, **batch, **WAYS[way])
    assert len(expected) == 2 * WAYS[way].get("num_return_sequences", 1)
    for reused in (0, 58, 58):
        assert torch.equal(seeded(warm, model, **batch, **WAYS[way]), expected)
        assert last(model) == (None, reused)
    # What they stored is what a plain call finds, and gives the plain answer.
    fresh = attached()
    assert torch.equal(warm(fresh, **batch), cold(fresh, **batch))
    assert last(fresh) == (None, 58)
    assert spoil.negate_v(tmp_path / "store") > 0
    other = attached()
    assert not torch.equal(seeded(warm, other, **batch, **WAYS[way]), expected)
    assert last(other) == (None, 58)


def test_they_find_what_a_plain_call_stored(attached: Attached) -> None:
    model, ids = attached(), prompt(70)
    warm(model, ids)
    for options in WAYS.values():
        if "prefill_chunk_size" not in options:
            assert torch.equal(seeded(warm, model, inputs=ids, **options), seeded(cold, model, inputs=ids, **options))
            assert last(model) == (None, 64)


def test_scores_and_indices_of_beams_are_the_ordinary_ones(attached: Attached) -> None:
    model, ids = attached(), prompt(50)
    options = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 2}
    expected = cold(model, ids, **options)
    for reused in (0, 48):
        result = warm(model, ids, **options)
        assert last(model) == (None, reused)
        assert torch.equal(result.sequences, expected.sequences)
        torch.testing.assert_close(result.sequences_scores, expected.sequences_scores)
        torch.testing.assert_close(result.past_key_values.layers[1].values, expected.past_key_values.layers[1].values)


def test_of_beams_only_the_prompt_is_stored(attached: Attached) -> None:
    """They change places while they grow: what a row holds in the end isn't what it was fed with."""
    model, ids = attached(), prompt(20)
    longer = warm(model, ids, num_beams=3, max_new_tokens=60)
    assert torch.equal(warm(model, **left_padded(longer)), cold(model, **left_padded(longer)))
    assert last(model) == (None, 16)


def test_each_sample_is_stored(attached: Attached) -> None:
    model, ids = attached(), prompt(20)
    torch.manual_seed(1)
    samples = warm(model, ids, num_return_sequences=3, do_sample=True, temperature=3.0, max_new_tokens=45)
    assert len({tuple(row) for row in samples.tolist()}) == 3
    for row in samples:
        assert torch.equal(warm(model, **left_padded(row[None])), cold(model, **left_padded(row[None])))
        assert last(model) == (None, 64)  # of 65 tokens the last has no KV
