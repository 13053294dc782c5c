"""LoRA adapters with large random weights for the demo's model, as PEFT saves them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.job import MODEL

RANK = 8
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def random_adapter(
    folder: Path, seed: int, modules: Sequence[str] = ("q_proj", "v_proj"), scale: float = 1.0, **changes: object
) -> Path:
    """A folder with an adapter of these modules. scale: of its weights. changes: to adapter_config.json."""
    folder.mkdir(exist_ok=True)
    save_file(matrices(seed, modules, scale), folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values | changes))
    return folder


def matrices(seed: int, modules: Sequence[str], scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The two matrices per module, `[rank, in]` and `[out, rank]`, by PEFT's names."""
    config = json.loads((Path(MODEL) / "config.json").read_text())
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, values = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "q_proj": ("self_attn", hidden, queries),
        "k_proj": ("self_attn", hidden, values),
        "v_proj": ("self_attn", hidden, values),
        "o_proj": ("self_attn", queries, hidden),
        "gate_proj": ("mlp", hidden, inner),
        "up_proj": ("mlp", hidden, inner),
        "down_proj": ("mlp", inner, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name in modules:
            part, width, out = shapes[name]
            key = f"base_model.model.model.layers.{layer}.{part}.{name}"
            tensors[f"{key}.lora_A.weight"] = scale * torch.randn(RANK, width, generator=generator)
            tensors[f"{key}.lora_B.weight"] = scale * torch.randn(out, RANK, generator=generator)
    return tensors
