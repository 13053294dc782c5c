"""Every family of the table is reused, and every other is left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from kvlingua.common.identity.architectures import ARCHITECTURES
from tests import spoil
from tests.adapters.hf.tiny import cold, left_padded, prompt, sharpened, warm

Attached = Callable[..., Any]

COMMON = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip

WINDOWS = ["sliding_attention"] * 3 + ["full_attention"]
GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 32, "tie_word_embeddings": False}
LATENT = {
    "head_dim": ..., "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": None, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip

# Without head_dim where the family has none of its own: it is hidden size / heads, 16.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"head_dim": ...},
    "qwen3": {},
    "olmo2": {"head_dim": ...},
    "granite": {"head_dim": ..., "attention_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 0.5},
    "phi": {"head_dim": ..., "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "stablelm": {"head_dim": ...},
    "smollm3": {"head_dim": ..., "tie_word_embeddings": False},
    "gptj": {
        **dict.fromkeys(COMMON, ...), "vocab_size": 256, "n_embd": 64, "n_head": 2, "n_layer": 3, "rotary_dim": 16,
        "n_positions": 512, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "tie_word_embeddings": False,
    },
    "cohere": {"head_dim": ...},
    "glm": {},
    "glm4": {},
    "ernie4_5": {},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "layer_types": WINDOWS},
    "gpt_oss": {"sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": WINDOWS},
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**LATENT, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}  # fmt: skip

REFUSED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt2": {**dict.fromkeys(COMMON, ...), "vocab_size": 256, "n_embd": 64, "n_head": 2, "n_layer": 2},
    "llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "mamba": {**dict.fromkeys(COMMON, ...), "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2},
}  # fmt: skip


def save(name: str, changes: dict[str, Any], folder: Path) -> None:
    values = {key: value for key, value in (COMMON | changes).items() if value is not ...}
    config = transformers.AutoConfig.for_model(name, **values)
    embed = 1.0 if name.startswith("gemma") else 8.0
    sharpened(AutoModelForCausalLM.from_config(config), embed=embed).save_pretrained(folder)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_table_is_covered() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_reused(attached: Attached, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kvlingua")
    save(name, FAMILIES[name], tmp_path / "model")
    model = attached(model=load(tmp_path / "model"))
    assert model.kvlingua.namespace is not None
    assert not model.kvlingua.namespace.fingerprint.startswith("memory:")
    assert not model.kvlingua.namespace.overrides
    batch = left_padded(prompt(60, seed=1), prompt(70, seed=2))
    expected = cold(model, **batch)
    for reused in (0, 58, 58):
        assert torch.equal(warm(model, **batch), expected)
        assert (model.kvlingua.last.reused, model.kvlingua.last.computed) == (reused, 70 - reused)
    identified = [record for record in caplog.records if record.message.startswith("on: ")]
    assert len(identified) == 1  # generate itself changes nothing that would have to be looked at again
    assert spoil.negate_v(tmp_path / "store") > 0
    assert not torch.equal(warm(attached(model=load(tmp_path / "model")), **batch), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_another_family_is_left_alone(attached: Attached, tmp_path: Path, name: str) -> None:
    save(name, REFUSED[name], tmp_path / "model")
    model = attached(model=load(tmp_path / "model"))
    assert model.kvlingua.namespace is None
    for _ in range(2):
        torch.manual_seed(0)
        expected = cold(model, prompt(70))
        torch.manual_seed(0)
        assert torch.equal(warm(model, prompt(70)), expected)
        assert model.kvlingua.last.passed_through is not None
    assert spoil.objects(tmp_path / "store") == []
