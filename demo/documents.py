"""Documents for the demo and the tests, with questions whose answers are known.

    document = make_document(seed=0)
    for question in document.questions:
        prompt = document.prompt(question)      # token ids
        expected = question.answer_id           # the first token a right model answers greedily

Every value follows from the seed and the length alone, on any machine. Needs the standard library only.

What is asked stands in the document's reusable part, the first 80 % of its tokens. The rest is recomputed when a cache
keeps whole chunks, and a fact in it would be answered rightly even from a spoiled cache. Only the kinds of fact that
the model answers reliably are asked about, and no fact that a later statement changes.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from demo.model.grammar import MAX_POSITIONS, Fact, question_words, write_long_text
from demo.model.vocabulary import FILLERS, WORD_IDS, to_ids

LENGTH = 1500  # tokens
QUESTIONS = 6  # for each document
RELIABLE_KINDS = ("direct", "coref_in", "same_x")

SHORTEST = 100  # tokens: below, a document hardly holds QUESTIONS facts
LONGEST = MAX_POSITIONS - 48  # leaves room for a question, an answer and some more

_FILLER_LENGTHS = sorted({len(filler) for filler in FILLERS})  # without gaps
_SMALLEST_GAP = 2 * _FILLER_LENGTHS[0]  # tokens: this gap and every larger one can be filled exactly
_UNSEEN = 1_000_000  # seeds from here on make the documents for cold runs


@dataclass(frozen=True)
class Question:
    """A question about a document and what is expected; `ids` and `words` end with `?`, the answer comes next.

    `position` is the index in the document of the word that gives the answer (or of `same`); `kind` is one of
    RELIABLE_KINDS, explained in demo.model.grammar.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]
    answer: str
    answer_id: int
    kind: str
    position: int


@dataclass(frozen=True)
class Document:
    """Token ids, the first `<s>`, the same as words, and questions with different answers."""

    ids: tuple[int, ...]
    words: tuple[str, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: Question) -> tuple[int, ...]:
        """Token ids of the document and then the question."""
        return self.ids + question.ids


def make_document(seed: int = 0, length: int = LENGTH, questions: int = QUESTIONS) -> Document:
    """The document of `seed`: exactly `length` tokens, with `questions` questions, their kinds in turn.

    Raises ValueError when `length` isn't between SHORTEST and LONGEST, or the document has too few facts to ask about.
    """
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"a document has {SHORTEST} to {LONGEST} tokens, not {length}")
    rng = random.Random(seed)
    text = write_long_text(rng, limit=length - _SMALLEST_GAP)
    words = text.words + _fill(rng, length - len(text.words))
    asked = _choose(rng, text.facts, reusable_tokens(length), questions)
    return Document(to_ids(words), words, tuple(_question(fact) for fact in asked))


def unseen_document(number: int = 0, length: int = LENGTH, questions: int = QUESTIONS) -> Document:
    """A document for a cold run: another text than make_document's of any seed below 1,000,000. Raises as that does."""
    return make_document(_UNSEEN + number, length, questions)


def reusable_tokens(length: int) -> int:
    """How many of a document's first tokens may hold what is asked."""
    return length * 4 // 5


def _fill(rng: random.Random, gap: int) -> tuple[str, ...]:
    """Fillers of exactly `gap` words; `gap` is at least _SMALLEST_GAP."""
    shortest, longest = _FILLER_LENGTHS[0], _FILLER_LENGTHS[-1]
    words: tuple[str, ...] = ()
    for left in range(math.ceil(gap / longest) - 1, -1, -1):
        open_gap = gap - len(words)
        fitting = [f for f in FILLERS if left * shortest <= open_gap - len(f) <= left * longest]
        words += rng.choice(fitting)
    return words


def _choose(rng: random.Random, facts: Sequence[Fact], reusable: int, count: int) -> list[Fact]:
    """`count` facts of the reliable kinds in turn, with different values, stated in the first `reusable` tokens."""
    inside = [fact for fact in facts if fact.position + 2 <= reusable]  # the statement's dot is inside too
    rng.shuffle(inside)
    left = {kind: [fact for fact in inside if fact.kind == kind] for kind in RELIABLE_KINDS}
    chosen: list[Fact] = []
    values: set[str] = set()
    while any(left.values()) and len(chosen) < count:
        for kind in RELIABLE_KINDS:
            left[kind] = [fact for fact in left[kind] if fact.value not in values]
            if left[kind] and len(chosen) < count:
                fact = left[kind].pop()
                chosen.append(fact)
                values.add(fact.value)
    if len(chosen) < count:
        raise ValueError(f"the document has {len(chosen)} facts to ask about, not {count}: ask less or make it longer")
    return chosen


def _question(fact: Fact) -> Question:
    words = question_words(fact.name, fact.relation)
    return Question(to_ids(words), words, fact.value, WORD_IDS[fact.value], fact.kind, fact.position)
