"""Attaching and detaching, what is not a model, and whose exceptions are whose."""

import copy
import functools
import inspect
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from kvlingua.adapters import hf
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.errors import ConfigError, KVLinguaError
from tests.adapters.hf.tiny import cold, llama_config, prompt, sharpened, warm

Attached = Callable[..., Any]


def traces(model: Any) -> dict[str, Any]:
    kept = {name: value for name, value in vars(model).items() if name not in ("_parameters", "_buffers", "_modules")}
    return {name: list(value) if isinstance(value, dict) else value for name, value in kept.items()}


def test_detach_leaves_no_trace(folder: Path, config: Config) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    before = traces(model)
    assert hf.attach(model, config) is model
    assert traces(model) != before
    warm(model, prompt(40))
    hf.detach(model)
    assert traces(model) == before
    assert model.generate.__func__ is GenerationMixin.generate
    hf.detach(model)
    hf.attach(model, config)
    model.kvlingua.detach()
    assert traces(model) == before
    assert torch.equal(model.generate(prompt(40), max_new_tokens=8), cold(model, prompt(40)))


def test_detach_writes_what_is_queued(folder: Path, config: Config, attached: Attached) -> None:
    model = hf.attach(LlamaForCausalLM.from_pretrained(folder).eval(), config)
    model.generate(prompt(40), max_new_tokens=2)
    hf.detach(model)
    other = attached()
    warm(other, prompt(40))
    assert other.kvlingua.last.reused == 32


def test_attach_again_replaces(folder: Path, config: Config) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    before = traces(model)
    first = hf.attach(model, config).kvlingua
    second = hf.attach(model, "memory://").kvlingua
    assert second is not first
    warm(model, prompt(100))
    warm(model, prompt(100))
    assert (first.last, second.last.reused) == (None, 64)
    hf.detach(model)
    assert traces(model) == before


def test_the_caller_closes_its_own_cache(folder: Path, config: Config) -> None:
    cache = KVCache.open(config)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    for reused in (0, 32):
        hf.attach(model, cache)
        warm(model, prompt(40))
        assert model.kvlingua.last.reused == reused
        hf.detach(model)
    cache.close()


def test_generate_still_looks_like_generate(attached: Attached) -> None:
    model = attached()
    assert inspect.signature(model.generate) == inspect.signature(functools.partial(GenerationMixin.generate, model))
    assert model.generate.__doc__ == GenerationMixin.generate.__doc__


@pytest.mark.parametrize("wrong", [None, 3, "model", torch.nn.Linear(2, 2), object()])
def test_what_is_no_model(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a transformers model"):
        hf.attach(wrong, "memory://")


def test_what_is_no_cache(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    before = traces(model)
    with pytest.raises(TypeError, match="expected a KVCache"):
        hf.attach(model, 7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        hf.attach(model, "gopher://host")
    assert traces(model) == before


def test_a_model_that_is_not_supported(caplog: pytest.LogCaptureFixture) -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = sharpened(T5ForConditionalGeneration(config))
    expected = model.generate(prompt(10) % 64, max_new_tokens=4)
    with caplog.at_level(logging.INFO, "kvlingua"):
        hf.attach(model, "memory://")
        for _ in range(3):
            assert torch.equal(model.generate(prompt(10) % 64, max_new_tokens=4), expected)
    lines = [record.message for record in caplog.records]
    assert lines == ["off: encoder-decoder models are not supported"]
    assert model.kvlingua.namespace is None
    assert model.kvlingua.last.passed_through == "encoder_decoder"
    hf.detach(model)


@pytest.mark.parametrize("wrap", ["compiled", "module"])
def test_what_wraps_a_model(wrap: str, caplog: pytest.LogCaptureFixture) -> None:
    inner, ids = sharpened(LlamaForCausalLM(llama_config())), prompt(40)

    class Wrapper(torch.nn.Module):
        """As an adapter library wraps a model: not a transformers model itself."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner.generate(*args, **kwargs)

    model = torch.compile(inner) if wrap == "compiled" else Wrapper().eval()
    with caplog.at_level(logging.INFO, "kvlingua"):
        hf.attach(model, "memory://")
    assert [record.message for record in caplog.records if record.message.startswith("off: ")]
    for _ in range(2):
        assert torch.equal(model.generate(ids, max_new_tokens=8), cold(inner, ids))
    assert model.kvlingua.last.passed_through in ("model", "method_replaced")
    hf.detach(model)
    assert "defect" not in caplog.text
    assert torch.equal(model.generate(ids, max_new_tokens=8), cold(inner, ids))


def test_a_model_of_inference_tensors(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Changes to such tensors are not counted by torch."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    assert model.lm_head.weight.is_inference()
    with caplog.at_level(logging.INFO, "kvlingua"):
        hf.attach(model, "memory://")
    assert "off: lm_head.weight was made in inference mode" in caplog.text
    assert torch.equal(model.generate(prompt(40), max_new_tokens=8), cold(model, prompt(40)))
    assert "defect" not in caplog.text
    hf.detach(model)


def test_generate_in_inference_mode(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    with torch.inference_mode():
        for reused in (0, 32):
            assert torch.equal(warm(model, ids), cold(model, ids))
            assert model.kvlingua.last.reused == reused
    assert torch.equal(warm(model, ids), cold(model, ids))
    assert model.kvlingua.last.reused == 32


def test_attaching_takes_no_random_numbers(folder: Path, config: Config) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    hf.attach(model, config)
    assert torch.equal(torch.rand(4), expected)
    hf.detach(model)


def test_the_line_that_says_it_is_on(attached: Attached, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvlingua"):
        model = attached()
    line = next(record.message for record in caplog.records if record.message.startswith("on: "))
    assert line.startswith(f"on: hf, namespace {model.kvlingua.namespace.digest[:12]}, layout hf, page 1, store ")


class Stopped(Exception):
    pass


def test_exceptions_of_the_engine_pass_unchanged(attached: Attached) -> None:
    model, calls = attached(), []

    def criterion(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        calls.append(ids.shape[1])
        raise Stopped("as it was")

    for _ in range(2):
        with pytest.raises(Stopped, match="as it was"):
            model.generate(prompt(40), max_new_tokens=4, stopping_criteria=[criterion])
    assert calls == [41, 41]
    with pytest.raises(ValueError, match="not used by the model") as ours:
        model.generate(prompt(40), maximum=3)
    with pytest.raises(ValueError, match="not used by the model") as theirs:
        cold(model, prompt(40), maximum=3)
    assert str(ours.value) == str(theirs.value)
    # And nothing of the failed calls was stored, or stands in the way.
    assert torch.equal(warm(model, prompt(40)), cold(model, prompt(40)))
    assert model.kvlingua.last.computed == 40


def test_a_copy_is_not_attached(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    warm(model, ids)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.norm.weight.mul_(-1)
    assert not torch.equal(cold(copied, ids), cold(model, ids))
    assert torch.equal(copied.generate(ids, max_new_tokens=8), cold(copied, ids))
    assert torch.equal(warm(model, ids), cold(model, ids))
    assert model.kvlingua.last.reused == 32
    attached(model=copied)
    assert torch.equal(warm(copied, ids), cold(copied, ids))
    assert copied.kvlingua.last.reused == 0
    hf.detach(copied)
    assert "generate" not in vars(copied)
    assert "kvlingua" not in vars(copied)
    assert not copied._forward_pre_hooks


def test_a_pickle_says_what_to_do(attached: Attached) -> None:
    with pytest.raises(KVLinguaError, match="detach"):
        torch.save(attached(), io.BytesIO())


def test_saving_and_moving_still_work(attached: Attached, tmp_path: Path) -> None:
    model, ids = attached(), prompt(40)
    model.save_pretrained(tmp_path / "saved")
    assert warm(model, ids) is not None
    other = attached(tmp_path / "saved")
    assert torch.equal(warm(other, ids), cold(model, ids))
    assert other.kvlingua.last.reused == 32


def test_generate_replaced_on_the_instance(folder: Path, config: Config) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    model.generate = replaced = lambda *args, **kwargs: "theirs"
    hf.attach(model, config)
    assert model.generate(prompt(4)) == "theirs"
    assert model.kvlingua.namespace is None
    hf.detach(model)
    assert model.generate is replaced


def test_detached_while_another_thread_generates(attached: Attached) -> None:
    ids, results = prompt(40), []
    for _ in range(10):
        model = attached()
        thread = threading.Thread(target=lambda model=model: results.append(model.generate(ids, max_new_tokens=30)))
        thread.start()
        hf.detach(model)
        thread.join()
    expected = cold(model, ids, max_new_tokens=30)
    assert [torch.equal(result, expected) for result in results] == [True] * 10


def test_a_hook_that_torch_still_calls_after_it_was_removed(attached: Attached) -> None:
    """torch looks twice at a hook; between the two another thread may have removed it."""
    model = attached()
    (hook,) = model._forward_pre_hooks.values()
    hf.detach(model)
    assert hook(model, (prompt(3),)) is None


def test_a_wrapped_model_outlives_its_store(tmp_path: Path, folder: Path) -> None:
    """A store that can't be opened or written is a reason to run without one, not to fail."""
    (tmp_path / "file").write_text("not a folder")
    model, ids = LlamaForCausalLM.from_pretrained(folder).eval(), prompt(40)
    hf.attach(model, f"file://{tmp_path / 'file' / 'store'}")
    for _ in range(2):
        assert torch.equal(model.generate(ids, max_new_tokens=8), cold(model, ids))
        assert model.kvlingua.last.reused == 0
    hf.detach(model)
    assert llama_config().num_hidden_layers == 3
