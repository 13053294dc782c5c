"""What kvlingua doesn't understand goes by: nothing is loaded, nothing stored, and the outcome is the model's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaForCausalLM,
    LogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessor

from kvlingua.common.metrics import REGISTRY
from tests.adapters.hf.tiny import cold, left_padded, llama_config, prompt, sharpened, warm

Attached = Callable[..., Any]
Case = Callable[[Any, torch.Tensor], dict[str, Any]]


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("kvlingua_refusals_total", {"adapter": "hf", "reason": reason}) or 0.0


def embeds(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Same ids, other content: what the model reads is something else than what the ids say."""
    return {"inputs": ids, "inputs_embeds": model.get_input_embeddings()(ids.flip(1)).detach()}


def position_ids(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"inputs": ids, "position_ids": torch.arange(ids.shape[1])[None] * 3}


def right_padding(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"inputs": ids, "attention_mask": (torch.arange(ids.shape[1]) < 30).long()[None]}


def a_hole(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"inputs": ids, "attention_mask": (torch.arange(ids.shape[1]) != 5).long()[None]}


def mask_of_floats(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"inputs": ids, "attention_mask": (torch.arange(ids.shape[1]) >= 20).float()[None]}


def foreign_cache(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """A cache of another text under the same ids."""
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids.flip(1)[:, :20], past_key_values=past)
    return {"inputs": ids, "past_key_values": past}


def assistant(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"inputs": ids, "assistant_model": sharpened(LlamaForCausalLM(llama_config(num_hidden_layers=1)), seed=3)}


def gptj() -> Any:
    config = GPTJConfig(
        vocab_size=256, n_embd=64, n_head=2, n_layer=2, rotary_dim=16, n_positions=512, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return sharpened(GPTJForCausalLM(config))


class Shifted(LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


OTHER_CONTENT: list[tuple[str, Case]] = [
    ("inputs_embeds", embeds),
    ("position_ids", position_ids),
    ("attention_mask", right_padding),
    ("attention_mask", a_hole),
    ("attention_mask", mask_of_floats),
    ("past_key_values", foreign_cache),
]
CASES: list[tuple[str, Case]] = [
    *OTHER_CONTENT,
    ("assistant_model", assistant),
    *(
        (next(iter(options)), lambda model, ids, options=options: {"inputs": ids} | options)  # type: ignore[misc]
        for options in (
            {"prompt_lookup_num_tokens": 3},
            {"use_cache": False},
            {"use_cache": None},
            {"cache_implementation": "offloaded"},
            {"output_attentions": True, "return_dict_in_generate": True},
            {"output_hidden_states": True, "return_dict_in_generate": True},
            {"guidance_scale": 1.5},
            {"negative_prompt_ids": prompt(40, seed=5), "guidance_scale": 2.0},
            {"synced_gpus": True},
            {"logits_to_keep": 1},
            {"cache_implementation": "quantized"},
            {"custom_generate": GenerationMixin._sample},
            {"generation_config": GenerationConfig(use_cache=False, max_new_tokens=8, pad_token_id=0)},
            {"cache_implementation": "static", "prefill_chunk_size": 10},
        )
    ),
]
REASONS = {
    "logits_to_keep": "unknown_argument",
    "generation_config": "use_cache",
}


def outcome(generate: Callable[..., Any], model: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """What came of it, the engine's own refusals included, in a form that can be compared."""
    torch.manual_seed(2)
    try:
        result = generate(model, **arguments)
    except (ValueError, IndexError, RuntimeError, AssertionError, ImportError) as error:
        return type(error), str(error)
    if isinstance(result, torch.Tensor):
        return (result.tolist(),)
    return result.sequences.tolist(), tuple(result.keys())


@pytest.mark.parametrize(("reason", "case"), CASES, ids=[f"{n}-{r}" for n, (r, _) in enumerate(CASES)])
def test_it_passes_through(attached: Attached, reason: str, case: Case) -> None:
    reason = REASONS.get(reason, reason)
    model, ids = attached(), prompt(40)
    plain = cold(model, ids)

    # On an empty store nothing of it may stay: the plain prompt then computes all.
    expected = outcome(cold, model, case(model, ids))
    before = refused(reason)
    assert outcome(warm, model, case(model, ids)) == expected
    call = model.kvlingua.last
    assert call is None or call.passed_through == reason  # None: the engine refused it itself
    assert refused(reason) == before + 1
    assert torch.equal(warm(model, ids), plain)
    assert (model.kvlingua.last.reused, model.kvlingua.last.computed) == (0, 40)

    # Beside the stored plain prompt, which hits, nothing of it is taken.
    assert torch.equal(warm(model, ids), plain)
    assert model.kvlingua.last.reused == 32
    assert outcome(warm, model, case(model, ids)) == expected
    assert refused(reason) == before + 2
    assert call is None or (model.kvlingua.last.passed_through, model.kvlingua.last.reused) == (reason, 0)
    assert torch.equal(warm(model, ids), plain)


@pytest.mark.parametrize("case", [case for _, case in OTHER_CONTENT])
def test_the_content_matters(attached: Attached, case: Case) -> None:
    """The control of the test above: other content under the same ids does give other tokens."""
    model, ids = attached(), prompt(40)
    assert not torch.equal(cold(model, **case(model, ids))[:, -8:], cold(model, ids)[:, -8:])


def test_token_types(attached: Attached) -> None:
    """Same ids, other content: of the supported families only GPT-J takes token types, and adds their embeddings."""
    model, ids = attached(model=gptj()), prompt(40)
    plain, typed = cold(model, ids), cold(model, ids, token_type_ids=ids.flip(1))
    assert not torch.equal(plain, typed)
    for reused in (0, 32):
        assert torch.equal(warm(model, ids, token_type_ids=ids.flip(1)), typed)
        assert (model.kvlingua.last.passed_through, model.kvlingua.last.reused) == ("token_type_ids", 0)
        assert torch.equal(warm(model, ids), plain)
        assert (model.kvlingua.last.passed_through, model.kvlingua.last.reused) == (None, reused)


def test_padding_tokens_without_a_mask(attached: Attached) -> None:
    """transformers then makes a mask from the tokens, holes included."""
    model = attached()
    ids = left_padded(prompt(30, seed=1), prompt(40, seed=2))["input_ids"]
    assert torch.equal(warm(model, ids), cold(model, ids))
    assert model.kvlingua.last.passed_through == "attention_mask"


def test_where_the_padding_token_ends_texts_it_is_a_token(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    ids[0, 7] = 0
    for reused in (0, 32):
        assert torch.equal(warm(model, ids, eos_token_id=[0, 255]), cold(model, ids, eos_token_id=[0, 255]))
        assert (model.kvlingua.last.passed_through, model.kvlingua.last.reused) == (None, reused)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"inputs": prompt(5), "input_ids": prompt(5)},
        {"inputs": prompt(5)[0]},
        {"inputs": prompt(40), "attention_mask": torch.ones(1, 1, 40, 40, dtype=torch.bool)},
        {"inputs": prompt(40), "pixel_values": torch.zeros(1, 3, 8, 8)},
    ],
)
def test_arguments_that_the_engine_rejects_or_replaces(attached: Attached, arguments: dict[str, Any]) -> None:
    model = attached()
    assert outcome(warm, model, arguments) == outcome(cold, model, arguments)
    assert model.kvlingua.last is None or model.kvlingua.last.passed_through is not None


@pytest.mark.parametrize(
    "wrong", ["hook", "pre_hook", "training", "forward", "submodule", "autocast", "attention", "layer"]
)
def test_a_model_that_computes_something_else(attached: Attached, wrong: str) -> None:
    """Same ids, same weights, other content: each of these changes what a forward computes."""
    model, ids = attached(), prompt(40)
    warm(model, ids)
    warm(model, ids)
    assert model.kvlingua.last.reused == 32
    layer = model.model.layers[1]
    undo: Callable[[], Any] = lambda: None  # noqa: E731
    reason = "hooks"
    if wrong == "hook":
        undo = layer.mlp.register_forward_hook(lambda module, args, output: output * 0.5).remove
    elif wrong == "pre_hook":
        undo = layer.mlp.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)).remove
    elif wrong == "training":
        model.train()
        reason, undo = "training", model.eval
    elif wrong == "forward":
        original = layer.mlp.forward
        layer.mlp.forward = lambda states: original(states) * 0.5
        reason, undo = "method_replaced", lambda: vars(layer.mlp).pop("forward")
    elif wrong == "submodule":
        layer.mlp.act_fn, before = torch.nn.Tanh().eval(), layer.mlp.act_fn
        reason, undo = "", lambda: setattr(layer.mlp, "act_fn", before)
    elif wrong == "attention":
        model.config._attn_implementation = "paged|sdpa"
        reason, undo = "attention", lambda: setattr(model.config, "_attn_implementation", "sdpa")
    elif wrong == "layer":

        class Adapter(torch.nn.Linear):
            """As an adapter library puts one in the place of a layer: the base weight is still there."""

        replaced = layer.mlp.up_proj
        adapter = Adapter(64, 96, bias=False)
        adapter.weight = replaced.weight
        layer.mlp.up_proj = adapter.eval()
        reason, undo = "foreign_module", lambda: setattr(layer.mlp, "up_proj", replaced)
    else:
        reason = "autocast"

    def generate(call: Callable[..., Any]) -> Any:
        torch.manual_seed(0)
        if wrong == "attention":  # only look at what would be done: the implementation is not installed for generate
            return model.kvlingua._prepare((ids,), {"max_new_tokens": 8})[-1]
        with torch.autocast("cpu", torch.bfloat16, enabled=wrong == "autocast"):
            return call(model, ids)

    if wrong == "attention":
        assert generate(warm) == reason
    else:
        expected = generate(cold)
        assert torch.equal(generate(warm), expected)
        assert model.kvlingua.last.reused == 0
        assert model.kvlingua.last.passed_through == (reason or None)
    undo()
    warm(model, ids)
    assert model.kvlingua.last.reused == 32


def test_hidden_states_once_asked_for_leave_listening_hooks_only(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    warm(model, ids, output_hidden_states=True, return_dict_in_generate=True)
    for reused in (0, 32):
        warm(model, ids)
        assert model.kvlingua.last.reused == reused


def test_processors_do_not_count(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    warm(model, ids, logits_processor=LogitsProcessorList([Shifted()]))
    warm(model, ids, logits_processor=LogitsProcessorList([Shifted()]))
    assert model.kvlingua.last.reused == 32
