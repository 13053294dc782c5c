"""Measures how often the demo's model answers rightly, on texts it was not trained on, by length and by kind of fact.

    python -m demo.model.measure
    python -m demo.model.measure --pinned 20     the questions that the demo and the tests ask, 20 documents

Each question is one cold forward pass over text and question; right is when the likeliest next word is the answer.
Prints a table with counts (right/asked).
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from demo.documents import LENGTH, make_document
from demo.model.grammar import KINDS, question_words, write_long_text
from demo.model.vocabulary import WORD_IDS, to_ids

WEIGHTS = Path(__file__).parent / "weights"
LENGTHS = (250, 500, 1000, 1500, 1900)  # tokens


@dataclass(frozen=True)
class Case:
    """A prompt and the one token that is right after it."""

    prompt: tuple[int, ...]
    answer_id: int
    kind: str


def mixed_cases(seed: int, length: int, texts: int, questions: int) -> Iterable[Case]:
    """Texts of about `length` tokens, with questions about any of their facts: the kinds as the grammar mixes them."""
    for number in range(texts):
        rng = random.Random(f"measure {seed} {length} {number}")
        text = write_long_text(rng, length)
        ids = to_ids(text.words)
        for fact in rng.sample(text.facts, min(questions, len(text.facts))):
            question = to_ids(question_words(fact.name, fact.relation))
            yield Case(ids + question, WORD_IDS[fact.value], fact.kind)


def pinned_cases(documents: int, questions: int, length: int) -> Iterable[Case]:
    """The questions of make_document, seeds from 0 on."""
    for seed in range(documents):
        document = make_document(seed, length, questions)
        for question in document.questions:
            yield Case(document.prompt(question), question.answer_id, question.kind)


@torch.no_grad()
def is_right(model: LlamaForCausalLM, case: Case) -> bool:
    """Whether the likeliest next token is the answer."""
    logits = model(input_ids=torch.tensor([case.prompt]), use_cache=False, logits_to_keep=1).logits  # [1, 1, words]
    return int(logits.argmax()) == case.answer_id


def count(model: LlamaForCausalLM, cases: Iterable[Case], wrong: list[Case]) -> tuple[Counter[str], Counter[str]]:
    """How many were right and how many were asked, by kind; the wrong ones are appended to `wrong`."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for case in cases:
        asked[case.kind] += 1
        if is_right(model, case):
            right[case.kind] += 1
        else:
            wrong.append(case)
    return right, asked


def row(name: str, right: Counter[str], asked: Counter[str]) -> str:
    """A line of the table."""
    cells = [f"{right[kind]}/{asked[kind]}" if asked[kind] else "-" for kind in KINDS]
    total = f"{right.total()}/{asked.total()} ({100 * right.total() / max(1, asked.total()):.1f} %)"
    return f"| {name} | {total} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of the model (default: the demo's)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a text")
    parser.add_argument("--texts", type=int, default=40, help="for each length")
    parser.add_argument("--questions", type=int, default=10, help="for each text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pinned", type=int, metavar="DOCUMENTS", help="measure make_document's questions instead")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    wrong: list[Case] = []
    print(f"| tokens | all | {' | '.join(KINDS)} |")
    print("|---" * (len(KINDS) + 2) + "|")
    if options.pinned is not None:
        right, asked = count(model, pinned_cases(options.pinned, options.questions, LENGTH), wrong)
        print(row(f"{LENGTH}, pinned", right, asked))
        return
    for length in options.lengths:
        right, asked = count(model, mixed_cases(options.seed, length, options.texts, options.questions), wrong)
        print(row(f"about {length}", right, asked), flush=True)


if __name__ == "__main__":
    main()
