"""What the clients ask, and the right answers: transformers' own, in fp32, without cache.

A conversation is a document, a question, the answer, the next question, ... Each turn's prompt begins with all of the
turns before it. Greedy engines of one precision may differ where two tokens are nearly equal, so that a turn asks only
for as many tokens as are clear: in the reference the first logit is ahead of the second by MARGIN.
"""

import random
from dataclasses import dataclass

import torch
import transformers

from demo.documents import make_document
from demo.job import MODEL

MARGIN = 0.01  # logits; engines differ from one another by about 1e-5 in fp32
LONGEST_ANSWER = 12  # tokens
TURNS = 3


@dataclass(frozen=True)
class Turn:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


Conversation = tuple[Turn, ...]


def make_conversations(seed: int, count: int) -> list[Conversation]:
    """`count` conversations of up to TURNS turns, the same for the same seed."""
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    rng = random.Random(seed)
    return [_converse(model, rng.randrange(1 << 20), rng.randrange(250, 900)) for _ in range(count)]


def _converse(model: transformers.PreTrainedModel, seed: int, length: int) -> Conversation:
    document = make_document(seed=seed, length=length, questions=TURNS)
    prompt, turns = document.ids, list[Turn]()
    for question in document.questions:
        prompt += question.ids
        answer = _answer(model, prompt)
        if not answer:  # not even the first token is clear
            break
        turns.append(Turn(prompt, answer))
        prompt += answer
    return tuple(turns)


@torch.inference_mode()
def _answer(model: transformers.PreTrainedModel, prompt: tuple[int, ...]) -> tuple[int, ...]:
    ids, cache = torch.tensor([prompt]), transformers.DynamicCache(config=model.config)
    answer = list[int]()
    while len(answer) < LONGEST_ANSWER:
        logits = model(input_ids=ids, past_key_values=cache).logits[0, -1]
        (first, second), (token, _) = (each.tolist() for each in logits.topk(2))
        if first - second < MARGIN:
            break
        answer.append(token)
        ids = torch.tensor([[token]])
    return tuple(answer)
