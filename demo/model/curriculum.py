"""What the model is trained on, from one section and eight questions to documents longer than the demo's."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from demo.model.grammar import KINDS, MAX_POSITIONS, Fact, Style, Text, draw_cast, question_words, write_text
from demo.model.vocabulary import NAMES, RELATIONS, to_ids

NO_ANSWER = -1  # in Batch.kinds

ANSWER_WEIGHT = 1.0
DOT_WEIGHT = 0.1  # of the dot behind the answer
TEXT_WEIGHT = 0.02  # of each word of the document


@dataclass(frozen=True)
class Stage:
    """One level of difficulty. `until` is the accuracy at which the next begins, `updates` the latest moment for it."""

    sections: tuple[int, int]  # both ends included
    style: Style
    questions: int  # for each text, at most
    batch: int  # texts for each update
    until: float
    updates: int
    names: int = len(NAMES)
    relations: int = len(RELATIONS)


STAGES = (
    Stage((1, 1), Style((4, 5), filler=0, same=0, update=0), 8, 32, until=0.93, updates=300, names=8, relations=3),
    Stage((1, 3), Style((3, 4), same=0.1), 10, 24, until=0.93, updates=300, names=20, relations=5),
    Stage((2, 4), Style((3, 5)), 14, 16, until=0.95, updates=300, names=48),
    Stage((3, 6), Style((3, 6)), 20, 12, until=0.95, updates=300),
    Stage((5, 10), Style((4, 8)), 32, 6, until=0.97, updates=400),
    Stage((8, 24), Style((5, 9)), 48, 3, until=0.97, updates=500),
    Stage((24, 42), Style((5, 9)), 48, 2, until=1.01, updates=10**9),
)


@dataclass(frozen=True)
class Batch:
    """Token sequences, padded with 0 at the end; all tensors are [texts, tokens]."""

    ids: Tensor  # int64
    weights: Tensor  # float32: what it costs not to foresee the token
    kinds: Tensor  # int64: index in KINDS where the token is an answer, else NO_ANSWER


def draw_batch(rng: random.Random, stage: Stage) -> Batch:
    """Texts of `stage`, each followed by questions and their answers."""
    sections = rng.randint(*stage.sections)
    rows: list[tuple[list[int], list[float], list[int]]] = []
    while len(rows) < stage.batch:
        text = _draw_text(rng, stage, sections)
        if text.facts:
            rows.append(_row(text, _choose(rng, text.facts, stage.questions)))
    longest = max(len(ids) for ids, _, _ in rows)
    batch = Batch(
        ids=torch.zeros(len(rows), longest, dtype=torch.int64),
        weights=torch.zeros(len(rows), longest),
        kinds=torch.full((len(rows), longest), NO_ANSWER),
    )
    for i, (ids, weights, kinds) in enumerate(rows):
        batch.ids[i, : len(ids)] = torch.tensor(ids)
        batch.weights[i, : len(ids)] = torch.tensor(weights)
        batch.kinds[i, : len(ids)] = torch.tensor(kinds)
    return batch


def _draw_text(rng: random.Random, stage: Stage, sections: int) -> Text:
    facts = sections * sum(stage.style.statements) // 2
    cast = draw_cast(rng, facts, NAMES[: stage.names], RELATIONS[: stage.relations])
    return write_text(rng, stage.style, cast, sections, limit=MAX_POSITIONS - 7 * stage.questions)


def _choose(rng: random.Random, facts: tuple[Fact, ...], count: int) -> list[Fact]:
    """`count` facts to ask about. Up to a third are updates and references across sections: the slow ones to learn."""
    hard = [fact for fact in facts if fact.kind in ("latest_x", "coref_x")]
    chosen = rng.sample(hard, min(len(hard), count // 3))
    taken = set(chosen)
    rest = [fact for fact in facts if fact not in taken]
    chosen += rng.sample(rest, min(len(rest), count - len(chosen)))
    rng.shuffle(chosen)
    return chosen


def _row(text: Text, facts: list[Fact]) -> tuple[list[int], list[float], list[int]]:
    ids = list(to_ids(text.words))
    weights = [TEXT_WEIGHT] * len(ids)
    kinds = [NO_ANSWER] * len(ids)
    for fact in facts:
        question = question_words(fact.name, fact.relation)
        ids += to_ids((*question, fact.value, "."))
        weights += [0.0] * len(question) + [ANSWER_WEIGHT, DOT_WEIGHT]
        kinds += [NO_ANSWER] * len(question) + [KINDS.index(fact.kind), NO_ANSWER]
    return ids, weights, kinds
