"""Methods that were replaced, on a model or on a class: same ids, same weights, other content."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from kvlingua.common.metrics import REGISTRY
from tests.adapters.hf.tiny import cold, prompt, warm

Attached = Callable[..., Any]


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("kvlingua_refusals_total", {"adapter": "hf", "reason": reason}) or 0.0


def soft_prompt(prepare: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """What `prepare_inputs_for_generation` returns, with 16 embeddings in front of the prompt's: prompt tuning."""
    soft = model.get_input_embeddings()(prompt(16, seed=9)).detach()

    def prepared(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        past = inputs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs |= {"input_ids": None, "inputs_embeds": torch.cat([soft, embeddings], 1)}
        inputs["attention_mask"] = None
        inputs.pop("position_ids", None)
        return inputs

    return prepared


def tuned(generate: Callable[..., Any], model: Any, ids: torch.Tensor) -> Any:
    """As libraries for prompt tuning do it: the base model's method is replaced while its `generate` runs."""
    model.prepare_inputs_for_generation = soft_prompt(model.prepare_inputs_for_generation, model)
    try:
        return generate(model, ids)
    finally:
        del model.prepare_inputs_for_generation


def test_soft_prompts(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    plain, soft = cold(model, ids), tuned(cold, model, ids)
    assert not torch.equal(soft, plain)
    before = refused("method_replaced")
    for reused in (0, 32):
        assert torch.equal(tuned(warm, model, ids), soft)
        assert (model.kvlingua.last.passed_through, model.kvlingua.last.computed) == ("method_replaced", 56)
        assert torch.equal(warm(model, ids), plain)
        assert (model.kvlingua.last.passed_through, model.kvlingua.last.reused) == (None, reused)
    assert refused("method_replaced") == before + 2


class Tuning(BaseStreamer):  # type: ignore[misc]
    """Puts a soft prompt on the model when `generate` shows it the prompt, too late for us to see it coming."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def put(self, value: torch.Tensor) -> None:
        if "prepare_inputs_for_generation" not in vars(self.model):
            self.model.prepare_inputs_for_generation = soft_prompt(self.model.prepare_inputs_for_generation, self.model)

    def end(self) -> None:
        del self.model.prepare_inputs_for_generation


def test_what_was_computed_is_not_the_prompt(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    plain, soft = cold(model, ids), cold(model, ids, streamer=Tuning(model))
    assert not torch.equal(soft, plain)
    before = refused("prompt_width")
    assert torch.equal(warm(model, ids, streamer=Tuning(model)), soft)
    assert (model.kvlingua.last.passed_through, model.kvlingua.last.computed) == (None, 56)
    assert refused("prompt_width") == before + 1
    for reused in (0, 32):
        assert torch.equal(warm(model, ids), plain)
        assert model.kvlingua.last.reused == reused


def halved(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, states: method(self, states) * 0.5


def halved_and_named_alike(method: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(method)(halved(method))


def softened(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: soft_prompt(functools.partial(method, self), self)(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "name", "patch", "reason"),
    [
        (LlamaMLP, "forward", halved, "foreign_module"),
        (LlamaMLP, "forward", halved_and_named_alike, "foreign_module"),
        (LlamaRMSNorm, "forward", halved, "foreign_module"),
        (LlamaForCausalLM, "prepare_inputs_for_generation", softened, "generate_replaced"),
        (GenerationMixin, "prepare_inputs_for_generation", softened, "generate_replaced"),
    ],
)
def test_a_class_that_is_patched(
    attached: Attached, monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str, patch: Any, reason: str
) -> None:
    """After the model was attached and has hit; and, for a second model, before."""
    model, ids = attached(), prompt(40)
    plain = cold(model, ids)
    for reused in (0, 32):
        assert torch.equal(warm(model, ids), plain)
        assert model.kvlingua.last.reused == reused
    with monkeypatch.context() as patched:
        patched.setattr(kind, name, patch(getattr(kind, name)))
        expected = cold(model, ids)
        assert not torch.equal(expected, plain)
        for each in (model, attached()):
            assert torch.equal(warm(each, ids), expected)
            assert each.kvlingua.last.passed_through == reason
            assert each.kvlingua.namespace is None
    assert torch.equal(warm(model, ids), plain)
    assert model.kvlingua.last.reused == 32
