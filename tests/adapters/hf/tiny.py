"""Tiny real models, made here, and how the tests call them. Weights are large enough that other KV gives other
tokens."""

from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig

VOCABULARY = 256
PAD = 0


def llama_config(**changes: Any) -> LlamaConfig:
    """3 layers, 4 heads over 2 kv heads of 32 dims, no token that ends a text."""
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD,
    }  # fmt: skip
    return LlamaConfig(**(values | changes))


def sharpened(model: Any, seed: int = 0, embed: float = 8.0) -> Any:
    """Random weights under which the next token depends on tokens far away: large logits, attention that is not
    flat. embed: how large embeddings are; less where the model itself enlarges them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                scale = gain * parameter.shape[-1] ** -0.5 * (embed if "embed" in name else 1.0)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def prompt(tokens: int, seed: int = 0) -> torch.Tensor:
    """`[1, tokens]` token ids without padding."""
    return torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(*rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch `[row, column]` of `[1, tokens]` prompts and its mask."""
    width = max(row.shape[1] for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, width - row.shape[1] :] = row[0]
        mask[number, width - row.shape[1] :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def cold(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What the model generates by itself: its class's `generate`, past whatever is attached."""
    return type(model).generate(model, *args, **({"max_new_tokens": 8} | kwargs))


def warm(model: Any, *args: Any, **kwargs: Any) -> Any:
    """What the attached model generates; what it stored is visible afterwards."""
    result = model.generate(*args, **({"max_new_tokens": 8} | kwargs))
    assert model.kvlingua.cache.flush(30)
    return result


def model_of(kind: type[Any], config: PretrainedConfig, seed: int = 0) -> Any:
    """A sharpened model of another family."""
    return sharpened(kind(config), seed)
