"""Another model is another namespace: each change after the unchanged model has hit, and back again where it can be
undone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from kvlingua.adapters.hf.weights import differing_tensor, expected_model, memory_fingerprint
from tests.adapters.hf.tiny import cold, llama_config, prompt, sharpened, warm

Attached = Callable[..., Any]


def reused(model: Any, ids: torch.Tensor) -> int:
    assert torch.equal(warm(model, ids), cold(model, ids))
    return int(model.kvlingua.last.reused)


def flip_one_bit(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.view(torch.int32).view(-1)[5] ^= 1


def test_one_bit_of_one_weight_in_memory(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    weight = model.model.layers[1].mlp.up_proj.weight
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    assert not model.kvlingua.namespace.fingerprint.startswith("memory:")
    flip_one_bit(weight.detach())
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    assert model.kvlingua.namespace.fingerprint.startswith("memory:")
    flip_one_bit(weight.detach())
    assert reused(model, ids) == 32
    assert not model.kvlingua.namespace.fingerprint.startswith("memory:")


def test_other_shards(attached: Attached) -> None:
    """Objects of several shards, in a namespace of their own."""
    one, other, ids = attached(), attached(layers_per_shard=1), prompt(40)
    assert [reused(one, ids) for _ in range(2)] == [0, 32]
    assert other.kvlingua.namespace.layers > other.kvlingua.namespace.layers_per_shard == 1
    assert [reused(other, ids) for _ in range(2)] == [0, 32]


def test_weights_that_change_while_it_generates(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    weight = model.model.layers[1].mlp.up_proj.weight

    def change(tokens: torch.Tensor, scores: Any) -> torch.Tensor:
        flip_one_bit(weight.detach())
        return torch.zeros(1, dtype=torch.bool)

    warm(model, ids, max_new_tokens=3, stopping_criteria=[change])
    flip_one_bit(weight.detach())  # the fourth time: it is what it was
    assert [reused(model, ids) for _ in range(2)] == [0, 32]


def test_a_weight_that_is_replaced(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    projection = model.model.layers[0].self_attn.v_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach() * 1.5)
    assert reused(model, ids) == 0


def test_data_writes_need_a_refresh(attached: Attached) -> None:
    model, ids = attached(), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    model.model.layers[0].mlp.up_proj.weight.data.mul_(0.5)
    model.kvlingua.refresh()
    assert reused(model, ids) == 0


@pytest.mark.parametrize("change", ["rotary", "scaling", "epsilon", "config"])
def test_what_is_no_weight(attached: Attached, change: str) -> None:
    model, ids = attached(), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    first = model.kvlingua.namespace
    rotary, norm = model.model.rotary_emb, model.model.layers[2].input_layernorm
    with torch.no_grad():
        if change == "rotary":
            rotary.inv_freq.mul_(0.5)
        elif change == "scaling":
            rotary.attention_scaling = 1.25
        elif change == "epsilon":
            norm.variance_epsilon = 0.1
        else:
            model.config.rms_norm_eps = 0.1
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    assert model.kvlingua.namespace != first
    with torch.no_grad():
        if change == "rotary":
            rotary.inv_freq.mul_(2)
        elif change == "scaling":
            rotary.attention_scaling = 1.0
        elif change == "epsilon":
            norm.variance_epsilon = 1e-6
        else:
            model.config.rms_norm_eps = 1e-6
    assert reused(model, ids) == 32
    assert model.kvlingua.namespace == first


def edit(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


@pytest.mark.parametrize(
    "changes",
    [{"rms_norm_eps": 1e-5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}],
    ids=["eps", "theta"],
)
def test_another_configuration_on_disk(
    attached: Attached, folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model, ids = attached(), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    other = attached(edit(folder, tmp_path / "other", **changes))
    assert reused(other, ids) == 0
    same = attached(edit(folder, tmp_path / "same"))
    assert reused(same, ids) == 32


def test_an_override_in_from_pretrained(attached: Attached, folder: Path) -> None:
    model, ids = attached(), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    other = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    assert reused(attached(model=other.eval()), ids) == 0
    assert not other.kvlingua.namespace.fingerprint.startswith("memory:")


def test_another_dtype(attached: Attached, caplog: pytest.LogCaptureFixture) -> None:
    ids = prompt(40)
    single, half = attached(), attached(dtype=torch.bfloat16)
    warm(single, ids)
    with caplog.at_level("INFO", "kvlingua"):
        warm(half, ids)
    assert "kv_dtype: bfloat16 here, float32 there" in caplog.text
    assert half.kvlingua.last.reused == 0
    assert half.kvlingua.namespace.fingerprint == single.kvlingua.namespace.fingerprint
    assert any("kv_dtype" in line for line in half.kvlingua.namespace.differences(single.kvlingua.namespace))


def test_one_bit_of_one_weight_on_disk(attached: Attached, folder: Path, tmp_path: Path) -> None:
    model, ids = attached(edit(folder, tmp_path / "model")), prompt(40)
    assert [reused(model, ids) for _ in range(2)] == [0, 32]
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    flip_one_bit(tensors["model.layers.1.mlp.up_proj.weight"])
    save_file(tensors, path, metadata={"format": "pt"})
    assert reused(attached(tmp_path / "model"), ids) == 0


def test_a_model_whose_files_changed_after_it_was_loaded(attached: Attached, folder: Path, tmp_path: Path) -> None:
    path = edit(folder, tmp_path / "model")
    model, ids = LlamaForCausalLM.from_pretrained(path).eval(), prompt(40)
    tensors = load_file(path / "model.safetensors")
    flip_one_bit(tensors["model.norm.weight"])
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    attached(model=model)
    assert model.kvlingua.namespace.fingerprint.startswith("memory:")
    assert reused(model, ids) == 0


def test_models_made_in_memory(attached: Attached) -> None:
    ids = prompt(40)
    models = [attached(model=sharpened(LlamaForCausalLM(llama_config()), seed)) for seed in (0, 0, 1)]
    assert [reused(model, ids) for model in models] == [0, 32, 0]
    assert models[0].kvlingua.namespace.fingerprint.startswith("memory:")


def test_a_model_made_in_memory_does_not_share_with_a_file(attached: Attached) -> None:
    """Its tensors are the file's, but nothing says how they came to be."""
    ids = prompt(40)
    assert reused(attached(model=sharpened(LlamaForCausalLM(llama_config()))), ids) == 0
    assert reused(attached(), ids) == 0


def test_tied_weights(attached: Attached, tmp_path: Path) -> None:
    sharpened(LlamaForCausalLM(llama_config(tie_word_embeddings=True))).save_pretrained(tmp_path / "tied")
    model, ids = attached(tmp_path / "tied"), prompt(40)
    assert not model.kvlingua.namespace.fingerprint.startswith("memory:")
    assert [reused(model, ids) for _ in range(2)] == [0, 32]


def test_a_cast_while_loading_is_no_difference(folder: Path) -> None:
    files = {"model.safetensors": folder / "model.safetensors"}
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert differing_tensor(model, expected_model(model), files) is None
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1
    assert differing_tensor(model, expected_model(model), files) == "lm_head.weight"


def test_a_tensor_that_no_file_holds(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    model = LlamaForCausalLM.from_pretrained(folder)
    assert (
        differing_tensor(model, expected_model(model), {"part": tmp_path / "part.safetensors"}) == "model.norm.weight"
    )
    assert differing_tensor(model, expected_model(model), {"part": tmp_path / "weights.bin"}) is not None


def test_the_hash_of_memory_sees_every_tensor(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    seen = {memory_fingerprint(model)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        flip_one_bit(tensor.detach())
        seen.add(memory_fingerprint(model))
        flip_one_bit(tensor.detach())
        assert name
    assert len(seen) == 1 + len([*model.named_parameters(), *model.named_buffers()])
