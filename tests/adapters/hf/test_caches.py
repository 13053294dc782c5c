"""Caches other than the one that transformers takes by itself: static ones, compiled, and those a caller gives."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache

from tests import spoil
from tests.adapters.hf.tiny import cold, left_padded, prompt, warm

Attached = Callable[..., Any]


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


def static(model: Any) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=100)


def used(model: Any, batch: int = 2) -> StaticCache:
    """One that held something else and was reset."""
    past = static(model)
    cold(model, prompt(batch * 40, seed=9).reshape(batch, 40), past_key_values=past)
    past.reset()
    return past


CACHES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "static": lambda model: {"cache_implementation": "static"},
    "static by configuration": lambda model: {
        "generation_config": GenerationConfig(max_new_tokens=8, cache_implementation="static", pad_token_id=0)
    },
    "static beams": lambda model: {"cache_implementation": "static", "num_beams": 2},
    "dynamic": lambda model: {"cache_implementation": "dynamic"},
    "a static one": lambda model: {"past_key_values": static(model)},
    "a used static one": lambda model: {"past_key_values": used(model)},
    "a dynamic one": lambda model: {"past_key_values": DynamicCache(config=model.config)},
    "a dynamic one of no model": lambda model: {"past_key_values": DynamicCache()},
}


@pytest.mark.parametrize("kind", CACHES)
def test_as_without_a_store(attached: Attached, tmp_path: Path, kind: str) -> None:
    model = attached()
    batch = left_padded(prompt(60, seed=1), prompt(70, seed=2))
    expected = cold(model, **batch, **CACHES[kind](model))
    assert torch.equal(expected[:, :70], batch["input_ids"])
    for reused in (0, 58, 58):
        arguments = CACHES[kind](model)
        assert torch.equal(warm(model, **batch, **arguments), expected)
        assert last(model) == (None, reused)
        if "past_key_values" in arguments:  # it is the caller's, and holds what it would
            assert int(arguments["past_key_values"].get_seq_length()) == 77
    fresh = attached()  # what they stored, a plain call finds
    assert torch.equal(warm(fresh, **batch), cold(fresh, **batch))
    assert last(fresh) == (None, 58)
    assert spoil.negate_v(tmp_path / "store") > 0
    other = attached()
    assert not torch.equal(warm(other, **batch, **CACHES[kind](other)), expected)
    assert last(other) == (None, 58)


def test_answers_in_a_static_cache_are_stored(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    longer = warm(model, ids, cache_implementation="static", max_new_tokens=41)
    text = left_padded(longer)
    assert torch.equal(warm(model, **text, cache_implementation="static"), cold(model, **text))
    assert last(model) == (None, 80)


def test_a_static_cache_stays_as_large_as_it_was(attached: Attached) -> None:
    """So that nothing is compiled again."""
    model, ids = attached(), prompt(40)
    sizes = []
    for new in (8, 30, 8):
        result = warm(model, ids, cache_implementation="static", max_new_tokens=new, return_dict_in_generate=True)
        sizes.append(result.past_key_values.get_max_length() if hasattr(StaticCache, "get_max_length") else 0)
    assert sizes == sorted(sizes)


def test_a_cache_that_holds_something_is_not_touched(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    warm(model, ids)
    for make in (static, lambda model: DynamicCache(config=model.config)):
        pasts = [make(model), make(model)]
        for past in pasts:
            with torch.no_grad():
                model(ids.flip(1)[:, :20], past_key_values=past)
        assert torch.equal(warm(model, ids, past_key_values=pasts[0]), cold(model, ids, past_key_values=pasts[1]))
        assert last(model) == ("past_key_values", 0)


def test_a_damaged_store_leaves_a_callers_cache_usable(attached: Attached, tmp_path: Path) -> None:
    model, ids = attached(), prompt(70)
    expected = cold(model, ids)
    warm(model, ids)
    for make in (static, lambda model: DynamicCache()):
        damaged = spoil.objects(tmp_path / "store")[-1]
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        other, past = attached(), make(model)
        assert torch.equal(warm(other, ids, past_key_values=past), expected)
        assert last(other) == (None, 0)
        assert int(past.get_seq_length()) == 77


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled(attached: Attached, tmp_path: Path) -> None:
    """transformers compiles the forwards that decode; the one that reads the prompt stays as it is."""
    import torch._dynamo.utils

    model = attached()
    compiled = CompileConfig(mode="default", fullgraph=True)
    compiled._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiled, "max_new_tokens": 6}
    ids = prompt(70)
    expected = cold(model, ids, cache_implementation="static", max_new_tokens=6)
    graphs = []
    for reused in (0, 64, 64):
        assert torch.equal(warm(model, ids, **options), expected)
        assert last(model) == (None, reused)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[2] == graphs[1]
    assert spoil.negate_v(tmp_path / "store") > 0
    assert not torch.equal(warm(attached(), ids, **options), expected)
