"""LoRA adapters of PEFT: another adapter is another namespace, which follows what acts in the next forward."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from kvlingua.adapters import hf
from kvlingua.common.config import Config
from kvlingua.common.identity.lora_folder import adapter_digest
from tests import spoil
from tests.adapters.hf.tiny import prompt

IDS = prompt(70)


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters that PEFT has saved, large enough to change the answers."""
    root = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("a", "b")):
        model = get_peft_model(load(folder), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name)
    return {name: root / name for name in ("a", "b")}


def load(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def attach(config: Config) -> Iterator[Callable[[Any], Any]]:
    models = []

    def attach(model: Any) -> Any:
        models.append(hf.attach(model, config))
        return model

    yield attach
    for model in models:
        hf.detach(model)


def warm(model: Any) -> Any:
    result = model.generate(input_ids=IDS, max_new_tokens=8)
    assert model.kvlingua.cache.flush(30)
    return result


def last(model: Any) -> tuple[str | None, int]:
    return model.kvlingua.last.passed_through, model.kvlingua.last.reused


def cold(folder: Path, adapter: Path | None) -> Any:
    model = load(folder) if adapter is None else PeftModel.from_pretrained(load(folder), adapter).eval()
    return model.generate(input_ids=IDS, max_new_tokens=8)


def test_an_adapter_shares_with_engines_that_load_its_folder(
    folder: Path, adapters: dict[str, Path], attach: Callable[[Any], Any], tmp_path: Path
) -> None:
    expected = cold(folder, adapters["a"])
    model = attach(PeftModel.from_pretrained(load(folder), adapters["a"]).eval())
    namespace = model.kvlingua.namespace
    assert namespace.lora == adapter_digest(adapters["a"])
    assert not namespace.fingerprint.startswith("memory:")
    assert not namespace.overrides
    for reused in (0, 64):
        assert torch.equal(warm(model), expected)
        assert last(model) == (None, reused)
    # As transformers itself puts it in, without PEFT's model around.
    native = load(folder)
    native.load_adapter(str(adapters["a"]), adapter_name="another name")
    native = attach(native.eval())
    assert native.kvlingua.namespace == namespace
    assert torch.equal(warm(native), expected)
    assert last(native) == (None, 64)
    assert spoil.negate_v(tmp_path / "store") > 0
    other = attach(PeftModel.from_pretrained(load(folder), adapters["a"]).eval())
    assert not torch.equal(warm(other), expected)
    assert last(other) == (None, 64)


def test_the_namespace_follows_what_acts(folder: Path, adapters: dict[str, Path], attach: Callable[[Any], Any]) -> None:
    expected = {name: cold(folder, path) for name, path in {**adapters, "base": None}.items()}
    assert len({tuple(each[0].tolist()) for each in expected.values()}) == 3
    model = PeftModel.from_pretrained(load(folder), adapters["a"], adapter_name="a").eval()
    model.load_adapter(adapters["b"], adapter_name="b")
    attach(model)
    digests = {name: adapter_digest(path) for name, path in adapters.items()}
    for reused in (0, 64):
        for name in ("a", "b", "a"):
            model.set_adapter(name)
            assert model.kvlingua.namespace.lora == digests[name]
            assert torch.equal(warm(model), expected[name])
            assert last(model)[1] in (reused, 64)
        with model.disable_adapter():
            assert model.kvlingua.namespace.lora is None
            assert torch.equal(warm(model), expected["base"])
            assert last(model) == (None, reused)
    plain = attach(load(folder))
    assert torch.equal(warm(plain), expected["base"])
    assert last(plain) == (None, 64)

    model.set_adapter("a")
    base, merged = model.get_base_model(), model.kvlingua.namespace
    model.merge_adapter()
    assert model.kvlingua.namespace.lora is None
    assert model.kvlingua.namespace.fingerprint.startswith("memory:")
    for reused in (0, 64):
        warm(model)
        assert last(model) == (None, reused)
    model.unmerge_adapter()  # up to rounding the old weights: not provably so
    assert model.kvlingua.namespace.lora == merged.lora
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.lora_A["a"].weight.mul_(2)
    changed = model.kvlingua.namespace
    assert changed.lora not in (None, *digests.values())
    warm(model)
    assert last(model) == (None, 0)
    base.model.layers[0].self_attn.q_proj.scaling["a"] *= 2
    assert model.kvlingua.namespace.lora.startswith("memory:")  # not as strong everywhere


def test_two_at_once(folder: Path, adapters: dict[str, Path], attach: Callable[[Any], Any]) -> None:
    model = PeftModel.from_pretrained(load(folder), adapters["a"], adapter_name="a").eval()
    model.load_adapter(adapters["b"], adapter_name="b")
    attach(model)
    digests = set()
    for names in (["a", "b"], ["b", "a"], ["a"]):
        model.base_model.set_adapter(names)
        digests.add(model.kvlingua.namespace.lora)
        expected = type(model.get_base_model()).generate(model.get_base_model(), IDS, max_new_tokens=8)
        for reused in (0, 64):
            assert torch.equal(warm(model), expected)
            assert last(model) == (None, reused)
    assert len(digests) == 3
    assert sum(digest.startswith("memory:") for digest in digests) == 2


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), "lora"),
        (LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True), "lora"),
        (LoraConfig(r=4, target_modules=["embed_tokens"]), "foreign_module"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "foreign_module"),
    ],
    ids=["dora", "bias", "embedding", "ia3"],
)
def test_other_adapters_pass_through(folder: Path, attach: Callable[[Any], Any], tuning: Any, reason: str) -> None:
    model = attach(get_peft_model(load(folder), tuning).eval())
    expected = type(model.get_base_model()).generate(model.get_base_model(), IDS, max_new_tokens=8)
    for _ in range(2):
        assert torch.equal(warm(model), expected)
        assert last(model) == (reason, 0)
    assert model.kvlingua.namespace is None


def test_merged_and_disabled_passes_through(
    folder: Path, adapters: dict[str, Path], attach: Callable[[Any], Any]
) -> None:
    """The next forward takes the adapter out of the weights."""
    model = attach(PeftModel.from_pretrained(load(folder), adapters["a"]).eval())
    expected = warm(model)
    model.merge_adapter()
    with model.disable_adapter():
        warm(model)
        assert last(model) == ("lora", 0)
    assert torch.equal(warm(model), expected)
