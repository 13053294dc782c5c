"""Around `generate`: transformers' pipeline, its streamers, and several threads at once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, pipeline

from tests.adapters.hf.tiny import PAD, VOCABULARY, cold, left_padded, prompt, warm

Attached = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words `w0` to `w255` for the tokens of these numbers."""
    model = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w2"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token=f"w{PAD}", padding_side="left")


def words(ids: torch.Tensor) -> str:
    return " ".join(f"w{each}" for each in ids[0].tolist())


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


def test_pipeline(attached: Attached, tokenizer: Any) -> None:
    model, text = attached(), words(prompt(60))
    options = {"max_new_tokens": 8, "do_sample": False, "return_tensors": True}
    expected = cold(model, prompt(60))[0].tolist()
    for reused in (0, 48):
        (answer,) = pipeline("text-generation", model=model, tokenizer=tokenizer)(text, **options)
        model.kvlingua.cache.flush(30)
        assert answer["generated_token_ids"] == expected
        assert last(model) == (None, reused)


def test_pipeline_in_batches(attached: Attached, tokenizer: Any) -> None:
    model, rows = attached(), [prompt(60, seed=1), prompt(40, seed=2)]
    run = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=2)
    expected = [row[pad:].tolist() for row, pad in zip(cold(model, **left_padded(*rows)), (0, 20), strict=True)]
    for reused in (0, 48):
        answers = run([words(row) for row in rows], max_new_tokens=8, do_sample=False, return_tensors=True)
        model.kvlingua.cache.flush(30)
        found = [[token for token in each[0]["generated_token_ids"] if token != PAD] for each in answers]
        assert found == expected
        assert last(model) == (None, reused)


def test_two_streams_at_once(attached: Attached, tokenizer: Any) -> None:
    """As servers do it: `generate` in a thread, its answer read as it comes."""
    model = attached()
    prompts = [prompt(60, seed=1), prompt(75, seed=2)]
    expected = [words(cold(model, ids)[:, ids.shape[1] :]) for ids in prompts]
    for ids in prompts:
        warm(model, ids)
    for _ in range(3):
        streamers = [TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=120) for _ in prompts]
        threads = [
            threading.Thread(target=model.generate, args=(ids,), kwargs={"max_new_tokens": 8, "streamer": streamer})
            for ids, streamer in zip(prompts, streamers, strict=True)
        ]
        for thread in threads:
            thread.start()
        assert ["".join(streamer) for streamer in streamers] == expected
        for thread in threads:
            thread.join()
    assert model.kvlingua.last.reused in (48, 64)


def test_threads_with_options_of_their_own(attached: Attached) -> None:
    """Beams, a static cache and a plain call on one model at the same time."""
    model = attached()
    calls = [{}, {"num_beams": 2}, {"cache_implementation": "static"}]
    prompts = [prompt(60 + 5 * number, seed=number) for number in range(len(calls))]
    expected = [cold(model, ids, **options) for ids, options in zip(prompts, calls, strict=True)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            if not torch.equal(warm(model, prompts[number], **calls[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
