"""A small Gemma 2 with random weights whose greedy tokens depend on what each of its layers keeps, whether it attends
to a window or to all tokens: embeddings are small, so that a token isn't its own successor; queries and keys are large,
so that attention isn't flat; attention weighs more than the MLP behind it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM

torch.set_num_threads(1)  # beside an engine's, more are slower
SLIDING, FULL = "sliding_attention", "full_attention"
# Fewer of one kind than of the other: vLLM makes more than two groups of them.
LAYERS = (SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL)
EMBEDDING, SHARPNESS, MLP, LOGITS = 0.35, 3.0, 0.5, 8.0


def make_model(folder: Path, window: int) -> Gemma2ForCausalLM:
    """The model in float32, read from `folder`, where it is saved. window: tokens that its sliding layers attend to."""
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=window,
        layer_types=list(LAYERS),
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                gain = EMBEDDING if "embed" in name else SHARPNESS if "q_proj" in name or "k_proj" in name else 1.0
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain * weight.shape[-1] ** -0.5)
            elif "post_feedforward" in name:  # a norm multiplies by 1 + its weight
                weight.fill_(MLP - 1)
            elif name == "model.norm.weight":
                weight.fill_(LOGITS - 1)
    model.save_pretrained(folder)
    return Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # kvlingua knows it by its files


def whole_cache(model: Gemma2ForCausalLM, ids: Sequence[int]) -> list[torch.Tensor]:
    """Keys and values [head, token, dim] of each layer as transformers computes them, of all tokens."""
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        model(torch.tensor([list(ids)]), past_key_values=cache)
    found = [plane[0].contiguous() for layer in cache.layers for plane in (layer.keys, layer.values)]
    assert {tensor.shape[1] for tensor in found} == {len(ids)}
    return found
