"""Trains the demo's model: a small Llama that answers questions about the document before them.

    python -m demo.model.train --out FOLDER

On one thread the result depends on nothing but the options (and the processor's and torch's rounding).
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from demo.model.curriculum import ANSWER_WEIGHT, NO_ANSWER, STAGES, Batch, draw_batch
from demo.model.export import export
from demo.model.grammar import KINDS, MAX_POSITIONS
from demo.model.initialisation import initialise
from demo.model.vocabulary import WORDS

WARM_UP = 200  # updates
CONSTANT_UNTIL = 0.6  # share of all updates; from there the learning rate follows a cosine
LAST_RATE = 0.03  # share of the learning rate at the end
REPLAY = 0.15  # share of updates that go back to an earlier stage
MEMORY = 0.95  # of the running accuracy that decides when the next stage begins


def new_model(seed: int) -> LlamaForCausalLM:
    """The model with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        # At 10000 and head_dim 32 only about four rotary pairs stay coherent over 1,000 tokens.
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def learning_rate(update: int, updates: int, peak: float) -> float:
    """The rate of an update: warm-up, constant, cosine."""
    rate = peak * min(1.0, (update + 1) / WARM_UP)
    done = update / updates
    if done > CONSTANT_UNTIL:
        rate *= max(LAST_RATE, 0.5 * (1 + math.cos(math.pi * (done - CONSTANT_UNTIL) / (1 - CONSTANT_UNTIL))))
    return rate


class Progress:
    """The stage that training is in, and the running accuracy there for each kind of fact."""

    def __init__(self) -> None:
        self.stage = 0
        self.accuracy = dict.fromkeys(KINDS, 0.0)
        self._updates = 0

    def draw_stage(self, rng: random.Random) -> int:
        """The stage of the next update: mostly the current one, at times one before (not the two easiest, late on)."""
        if self.stage == 0 or rng.random() >= REPLAY:
            return self.stage
        return rng.randint(2 if self.stage >= 5 else 0, self.stage - 1)

    def record(self, stage: int, kinds: Tensor, right: Tensor) -> bool:
        """Count an update; `kinds` and `right` are [answers]. True when the next stage begins."""
        self._updates += 1
        if stage == self.stage:
            for i, kind in enumerate(KINDS):
                of_kind = right[kinds == i]
                if len(of_kind):
                    self.accuracy[kind] = MEMORY * self.accuracy[kind] + (1 - MEMORY) * of_kind.mean().item()
        if self.stage == len(STAGES) - 1 or self._updates <= 60:
            return False
        asked = ("direct", "coref_in") if self.stage < 3 else ("direct", "coref_in", "coref_x")
        limits = STAGES[self.stage]
        if min(self.accuracy[kind] for kind in asked) <= limits.until and self._updates < limits.updates:
            return False
        self.stage, self._updates = self.stage + 1, 0
        self.accuracy = {kind: value / 2 for kind, value in self.accuracy.items()}
        return True


def train_step(model: LlamaForCausalLM, optimiser: torch.optim.Optimizer, batch: Batch) -> tuple[float, Tensor, Tensor]:
    """One update. Returns the loss, and for each answer its kind and whether it was right: int64, float32 [answers]."""
    states = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    weights = batch.weights[:, 1:]
    counted = weights > 0
    weights, targets = weights[counted], batch.ids[:, 1:][counted]
    logits = model.lm_head(states[counted])
    losses = F.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights).sum() / (weights == ANSWER_WEIGHT).sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    kinds = batch.kinds[:, 1:][counted]
    right = (logits.detach().argmax(-1) == targets).float()
    return loss.item(), kinds[kinds != NO_ANSWER], right[kinds != NO_ANSWER]


def train(seed: int, updates: int, peak: float) -> LlamaForCausalLM:
    """A trained model. Prints a line of JSON every 50 updates."""
    rng = random.Random(seed + 1)
    model = new_model(seed)
    initialise(model, probe=draw_batch(rng, STAGES[1]).ids, seed=seed + 5)
    model.train()
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    progress, begun, tokens = Progress(), time.monotonic(), 0
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(update, updates, peak)
        stage = progress.draw_stage(rng)
        batch = draw_batch(rng, STAGES[stage])
        loss, kinds, right = train_step(model, optimiser, batch)
        tokens += batch.ids.numel()
        advanced = progress.record(stage, kinds, right)
        if advanced or (update + 1) % 50 == 0:
            line: dict[str, float] = {"update": update + 1, "seconds": round(time.monotonic() - begun)}
            line |= {"tokens": tokens, "stage": progress.stage, "loss": round(loss, 4)}
            line |= {kind: round(value, 3) for kind, value in progress.accuracy.items()}
            print(json.dumps(line), flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model (must not exist)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=2800)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="the highest")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: name a new folder")
    torch.set_num_threads(1)  # the matrices are small: a second thread costs more than it brings
    model = train(options.seed, options.updates, options.learning_rate)
    export(model, options.out)
    print(f"trained in {time.process_time():.0f} CPU seconds, written to {options.out}")


if __name__ == "__main__":
    main()
