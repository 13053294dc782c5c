"""A chat: each turn's prompt holds the answers before it, and finds their KV."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import spoil
from tests.adapters.hf.tiny import PAD, cold, left_padded, prompt, warm

Attached = Callable[..., Any]


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


@pytest.mark.parametrize("sampled", [False, True])
def test_turns(attached: Attached, tmp_path: Path, sampled: bool) -> None:
    """Each call in a process of its own, so to say: another instance of the model."""
    options = {"max_new_tokens": 40, "do_sample": sampled, "temperature": 2.0 if sampled else None}
    text = prompt(50, seed=1)
    for turn in range(4):
        model = attached()
        torch.manual_seed(turn)
        expected = cold(model, **left_padded(text), **options)
        torch.manual_seed(turn)
        assert torch.equal(warm(model, **left_padded(text), **options), expected)
        stored = (text.shape[1] - 5 - 1) // 16 * 16 if turn else 0  # a question of 5, and the answer's last token
        assert last(model) == (None, stored)
        text = torch.cat([expected, prompt(5, seed=10 + turn)], 1)
    assert spoil.negate_v(tmp_path / "store") > 0
    other = attached()
    assert not torch.equal(warm(other, **left_padded(text)), cold(other, **left_padded(text)))
    assert last(other) == (None, (text.shape[1] - 6) // 16 * 16)


def test_what_is_stored_of_an_answer_is_what_a_prefill_computes(attached: Attached, tmp_path: Path) -> None:
    model, ids = attached(), prompt(30)
    longer = warm(model, ids, max_new_tokens=51)
    again = attached()
    for each, text in ((model, longer), (again, longer)):
        options = {"max_new_tokens": 1, "return_dict_in_generate": True}
        expected = cold(each, **left_padded(text), **options).past_key_values
        past = warm(each, **left_padded(text), **options).past_key_values
        assert last(each) == (None, 80)
        for layer, wanted in zip(past.layers, expected.layers, strict=True):
            torch.testing.assert_close(layer.keys, wanted.keys)
            torch.testing.assert_close(layer.values, wanted.values)


def end(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """A token that ends the first answer soon, and never the second."""
    first, second = cold(model, **batch, max_new_tokens=40)[:, -40:].tolist()
    return next(token for token in first if token not in second and token != PAD)


def test_a_batch_whose_rows_end_one_after_another(attached: Attached) -> None:
    """A row that has ended is filled up: that isn't stored, and what is before it is."""
    model = attached()
    batch = left_padded(prompt(44, seed=1), prompt(30, seed=2))
    eos = end(model, batch)
    answers = warm(model, **batch, max_new_tokens=40, eos_token_id=eos, pad_token_id=PAD)
    assert torch.equal(answers, cold(model, **batch, max_new_tokens=40, eos_token_id=eos, pad_token_id=PAD))
    filled = (answers == PAD).sum(1) - (batch["input_ids"] == PAD).sum(1)
    assert filled.max() > 16
    assert filled.min() == 0
    for row, pad in zip(answers, (0, 14), strict=True):
        text = row[pad:]
        text = text[: len(text) - int((text == PAD).sum())][None]
        assert torch.equal(warm(model, **left_padded(text)), cold(model, **left_padded(text)))
        assert last(model)[1] >= (text.shape[1] - 1) // 16 * 16


def test_text_that_goes_on_otherwise_finds_the_prompt_only(attached: Attached) -> None:
    model, ids = attached(), prompt(32)
    longer = warm(model, ids, max_new_tokens=40)
    longer[0, 40] = 3 + (longer[0, 40] - 2) % 253
    assert torch.equal(warm(model, **left_padded(longer)), cold(model, **left_padded(longer)))
    assert last(model) == (None, 32)
