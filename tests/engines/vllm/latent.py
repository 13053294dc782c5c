"""Small models with latent attention (MLA) and random weights, of the one size that vLLM has a kernel for on CPUs. As
in sliding.py their greedy tokens depend on what each layer keeps."""

from pathlib import Path
from typing import Any

import torch
import transformers

torch.set_num_threads(1)  # beside an engine's, more are slower
LAYERS = 3
EMBEDDING, SHARPNESS, MLP, LOGITS = 0.35, 3.0, 0.5, 8.0
SHARP = ("q_proj", "q_b_proj", "kv_a_proj_with_mqa")
OWN: dict[str, dict[str, Any]] = {
    "DeepseekV2": {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    # That vLLM and transformers choose experts alike has to be said in config.json.
    "DeepseekV3": {
        "q_lora_rank": 48,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_group": 2,
        "topk_group": 1,
    },
}


def make_model(folder: Path, family: str) -> Any:
    """The model in float32, read from `folder`, where it is saved. All layers but the first have experts."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=512,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
        **OWN[family],
    )
    kind = getattr(transformers, f"{family}ForCausalLM")
    model, generator = kind(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                sharp = SHARPNESS if any(part in name for part in SHARP) else 1.0
                gain = EMBEDDING if "embed" in name else MLP if "mlp" in name else sharp
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain * weight.shape[-1] ** -0.5)
            elif name == "model.norm.weight":
                weight.fill_(LOGITS)
    model.save_pretrained(folder)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()  # kvlingua knows it by its files
