"""The demo's model as it lies in the repository: every reader finds the same model, and it answers from its context."""

import json
from collections.abc import Sequence

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from demo.documents import Document, make_document, unseen_document
from demo.model.grammar import MAX_POSITIONS
from demo.model.measure import WEIGHTS
from demo.model.vocabulary import WORDS


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@torch.no_grad()
def next_token(model: LlamaForCausalLM, ids: Sequence[int]) -> int:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits
    return int(logits.argmax())


def test_config_is_read_alike_by_old_and_new_readers() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["max_position_embeddings"] == MAX_POSITIONS
    assert config["vocab_size"] == len(WORDS)
    assert (config["head_dim"], config["num_hidden_layers"], config["num_key_value_heads"]) == (32, 4, 4)


def test_weights_are_small_and_in_fp32() -> None:
    file = WEIGHTS / "model.safetensors"
    assert file.stat().st_size < 4_000_000
    with safe_open(file, framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F32"}  # noqa: SIM118


def test_one_word_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    document = make_document(0)
    assert tuple(tokenizer(" ".join(document.words))["input_ids"]) == document.ids
    assert tokenizer.convert_ids_to_tokens(range(len(WORDS))) == list(WORDS)
    assert tokenizer.decode(document.questions[0].answer_id) == document.questions[0].answer


@pytest.mark.parametrize("document", [make_document(0), make_document(1), unseen_document(0)])
def test_answers_from_the_document(model: LlamaForCausalLM, document: Document) -> None:
    answers = [next_token(model, document.prompt(question)) for question in document.questions]
    assert answers == [question.answer_id for question in document.questions]
    # Negative control: it can't know the answers without the document, or from another one.
    other = unseen_document(1)
    for context in (document.ids[:2], other.ids):
        guesses = [next_token(model, context + question.ids) for question in document.questions]
        right = sum(guess == question.answer_id for guess, question in zip(guesses, document.questions, strict=True))
        assert right <= len(document.questions) // 3
