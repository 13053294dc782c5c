"""What the demo's model answers: transformers' greedy tokens, in fp32 and in this process, without a cache. Engines
that compute in fp32 answer the same, since all of these tokens are clear."""

from functools import cache

import torch
import transformers

from demo.job import MODEL
from engines.drivers.protocol import Ask

MARGIN = 1e-4  # logits by which the first is ahead of the second; engines differ by about 1e-5


def answer(ask: Ask) -> list[int]:
    return list(_answer(tuple(ask.prompt), ask.max_tokens))


def answers(*asks: Ask) -> list[list[int]]:
    return [answer(ask) for ask in asks]


@cache
def _model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@cache
@torch.inference_mode()
def _answer(prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    model = _model()
    ids, past = torch.tensor([prompt]), transformers.DynamicCache(config=model.config)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        logits = model(input_ids=ids, past_key_values=past).logits[0, -1]
        (first, second), (token, _) = (each.tolist() for each in logits.topk(2))
        assert first - second >= MARGIN, f"token {len(tokens)} of this answer isn't clear: take another text"
        tokens.append(token)
        ids = torch.tensor([[token]])
    return tuple(tokens)
