"""A prompt that was read once is not read again, and the answers stay the same."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from tests.adapters.hf.tiny import cold, left_padded, prompt, warm

Attached = Callable[..., Any]


def last(model: Any) -> tuple[int, int, int]:
    call = model.kvlingua.last
    assert call.passed_through is None
    return call.prompt_tokens, call.reused, call.computed


@pytest.mark.parametrize(
    ("tokens", "reused"),
    [(15, 0), (16, 15), (17, 16), (31, 16), (32, 31), (33, 32), (100, 96), (1, 0)],
)
def test_the_same_prompt_again(attached: Attached, tokens: int, reused: int) -> None:
    model, ids = attached(), prompt(tokens)
    expected = cold(model, ids)
    assert torch.equal(warm(model, ids), expected)
    assert last(model) == (tokens, 0, tokens)
    assert torch.equal(warm(model, ids), expected)
    assert last(model) == (tokens, reused, tokens - reused)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 64])
def test_a_shared_prefix(attached: Attached, chunk_tokens: int) -> None:
    model = attached(chunk_tokens=chunk_tokens)
    document = prompt(130, seed=1)
    warm(model, document)
    for question, seed in ((20, 2), (3, 3), (1, 4)):
        ids = torch.cat([document, prompt(question, seed)], 1)
        assert torch.equal(warm(model, ids), cold(model, ids))
        reused = 130 - 130 % chunk_tokens
        assert last(model) == (130 + question, reused, 130 + question - reused)


def test_another_prompt_does_not_hit(attached: Attached) -> None:
    model, ids = attached(), prompt(64)
    warm(model, ids)
    for changed in (0, 15):
        other = ids.clone()
        other[0, changed] = 3 + (other[0, changed] - 2) % 253
        assert torch.equal(warm(model, other), cold(model, other))
        assert last(model) == (64, 0, 64)
    other = ids.clone()
    other[0, 20] = 3 + (other[0, 20] - 2) % 253
    assert torch.equal(warm(model, other), cold(model, other))
    assert last(model) == (64, 16, 48)


def test_another_instance_of_the_model(attached: Attached) -> None:
    first, second, ids = attached(), attached(), prompt(70)
    expected = cold(first, ids)
    warm(first, ids)
    assert torch.equal(warm(second, ids), expected)
    assert last(second) == (70, 64, 6)
    assert first.kvlingua.namespace == second.kvlingua.namespace


def test_left_padded_batch_with_mixed_hits(attached: Attached) -> None:
    model = attached()
    rows = prompt(50, seed=1), prompt(21, seed=2), prompt(70, seed=3)
    batch = left_padded(*rows)
    expected = cold(model, **batch)
    assert torch.equal(warm(model, **batch), expected)
    assert last(model) == (70, 0, 70)
    # Stored: 48, 16 and 64 tokens behind paddings of 20, 49 and 0: the least that all rows have is 64 columns.
    assert torch.equal(warm(model, **batch), expected)
    assert last(model) == (70, 64, 6)
    # Alone, each row finds what the batch stored.
    for row, reused in zip(rows, (48, 16, 64), strict=True):
        assert torch.equal(warm(model, row), cold(model, row))
        assert last(model) == (row.shape[1], reused, row.shape[1] - reused)
    # One row that was never seen: nothing can be taken but what lies left of its first token.
    batch = left_padded(rows[0], rows[2], prompt(30, seed=9))
    assert torch.equal(warm(model, **batch), cold(model, **batch))
    assert last(model) == (70, 40, 30)


def test_a_batch_reads_what_single_prompts_stored(attached: Attached) -> None:
    model = attached()
    rows = prompt(40, seed=1), prompt(33, seed=2)
    for row in rows:
        warm(model, row)
    batch = left_padded(*rows)
    assert torch.equal(warm(model, **batch), cold(model, **batch))
    assert last(model) == (40, 32, 8)


def test_a_padded_single_prompt(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    batch = {"input_ids": torch.cat([torch.zeros(1, 9, dtype=torch.int64), ids], 1)}
    batch["attention_mask"] = (torch.arange(49) >= 9).long()[None]
    warm(model, ids)
    assert torch.equal(warm(model, **batch), cold(model, **batch))
    assert last(model) == (49, 41, 8)


def test_what_is_returned_is_the_ordinary_thing(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = cold(model, ids, **options)
    for reused in (0, 32):
        result = warm(model, ids, **options)
        assert last(model)[1] == reused
        assert type(result) is type(expected)
        assert result.keys() == expected.keys()
        assert torch.equal(result.sequences, expected.sequences)
        torch.testing.assert_close(result.logits, expected.logits)
        torch.testing.assert_close(result.scores, expected.scores)
        past = result.past_key_values
        assert type(past) is DynamicCache
        assert past.get_seq_length() == expected.past_key_values.get_seq_length()
        for layer, wanted in zip(past.layers, expected.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys, wanted.keys)
            torch.testing.assert_close(layer.values, wanted.values)


def test_bfloat16_logits_within_rounding(attached: Attached) -> None:
    model, ids = attached(dtype=torch.bfloat16), prompt(100)
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1}
    expected = cold(model, ids, **options).logits[0]
    warm(model, ids)
    result = warm(model, ids, **options).logits[0]
    assert last(model) == (100, 96, 4)
    assert (result - expected).abs().max() < 0.05 * expected.abs().max()


class Collected(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


def test_streaming(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    expected = cold(model, ids)[0].tolist()
    for reused in (0, 32):
        streamer = Collected()
        warm(model, ids, streamer=streamer)
        assert streamer.tokens == expected
        assert last(model)[1] == reused


@pytest.mark.parametrize(
    "options",
    [
        {"generation_config": GenerationConfig(max_new_tokens=8, pad_token_id=0)},
        {"do_sample": True, "temperature": 1.5, "top_k": 20},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 4, "bad_words_ids": [[7], [9]]},
        {"use_cache": True, "num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1.0},
        {"logits_processor": [lambda ids, scores: scores + torch.arange(256) * 0.01]},
        {"stopping_criteria": [lambda ids, scores: torch.full((1,), ids.shape[1] > 43)]},
        {"prefix_allowed_tokens_fn": lambda row, ids: list(range(50, 90))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_leave_the_prompt_alone(attached: Attached, options: dict[str, Any]) -> None:
    model, ids = attached(), prompt(40)
    torch.manual_seed(1)
    expected = cold(model, ids, **options)
    for reused in (0, 32):
        torch.manual_seed(1)
        assert torch.equal(warm(model, ids, **options), expected)
        assert last(model) == (40, reused, 40 - reused)


@pytest.mark.parametrize("chunk", [5, 16, 100])
def test_chunked_prefill(attached: Attached, chunk: int) -> None:
    """Right behind a filled cache from transformers 5.23 on; before, it passes through."""
    import transformers

    model, ids = attached(), prompt(75)
    expected = cold(model, ids, prefill_chunk_size=chunk)
    assert torch.equal(expected, cold(model, ids))
    for reused in (0, 64):
        assert torch.equal(warm(model, ids, prefill_chunk_size=chunk), expected)
        if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
            assert model.kvlingua.last.passed_through == "prefill_chunk_size"
        else:
            assert last(model) == (75, reused, 75 - reused)


def test_a_processor_that_runs_the_model_itself(attached: Attached) -> None:
    """Its forwards read no prompt of ours, and are not counted."""
    model, ids = attached(), prompt(40)

    def guided(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        past = DynamicCache(config=model.config)
        model(input_ids=tokens[:, -7:-3], past_key_values=past)
        ours = model(input_ids=tokens[:, -3:], past_key_values=past).logits[:, -1]
        return scores + ours + model(input_ids=tokens[:, :2]).logits[:, -1]

    expected = cold(model, ids, logits_processor=[guided])
    for reused in (0, 32):
        assert torch.equal(warm(model, ids, logits_processor=[guided]), expected)
        assert last(model) == (40, reused, 40 - reused)


def test_roles(attached: Attached) -> None:
    ids = prompt(40)
    producer, consumer = attached(role="producer"), attached(role="consumer")
    expected = cold(producer, ids)
    assert torch.equal(warm(consumer, ids), expected)
    assert torch.equal(warm(consumer, ids), expected)
    assert last(consumer) == (40, 0, 40)
    for _ in range(2):
        assert torch.equal(warm(producer, ids), expected)
        assert last(producer) == (40, 0, 40)
    assert torch.equal(warm(consumer, ids), expected)
    assert last(consumer) == (40, 32, 8)


def test_chunk_sizes_do_not_mix(attached: Attached) -> None:
    ids = prompt(70)
    first, second = attached(chunk_tokens=16), attached(chunk_tokens=32)
    warm(first, ids)
    assert torch.equal(warm(second, ids), cold(second, ids))
    assert last(second) == (70, 0, 70)


def test_threads_do_not_disturb_each_other(attached: Attached) -> None:
    model = attached()
    prompts = [prompt(60 + 5 * number, seed=number) for number in range(4)]
    expected = [cold(model, ids) for ids in prompts]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(4):
            if not torch.equal(warm(model, prompts[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    warm(model, prompts[0])
    assert last(model) == (60, 48, 12)
