"""The demo's documents: the same everywhere, as long as asked for, and every expected answer follows from the text."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.documents import (
    LENGTH,
    LONGEST,
    QUESTIONS,
    RELIABLE_KINDS,
    SHORTEST,
    Document,
    make_document,
    reusable_tokens,
    unseen_document,
)
from demo.model.vocabulary import NAMES, RELATIONS, VALUES, WORD_IDS, WORDS

SEEDS = st.integers(min_value=0, max_value=2**32)


@dataclass
class Known:
    """What a reader holds true of a person and a relation."""

    value: str
    position: int
    kind: str


def read(words: tuple[str, ...]) -> dict[tuple[str, str], Known]:
    """What holds at the end of a text: reads sentence by sentence, knows nothing of how the text was written."""
    known: dict[tuple[str, str], Known] = {}
    person, section_of_person, section = "", 0, 0
    sentence: list[str] = []
    for position, word in enumerate(words):
        if word == "<s>":
            assert position == 0
        elif word == "<doc>":
            assert not sentence, "a section opens in the middle of a sentence"
            section += 1
        elif word != ".":
            sentence.append(word)
        else:
            match sentence:
                case ["they", relation, value] if relation in RELATIONS:
                    kind = "coref_in" if section_of_person == section else "coref_x"
                    assert person
                    assert (person, relation) not in known
                    known[person, relation] = Known(value, position - 1, kind)
                case [name, relation, value] if name in NAMES:
                    kind = "latest_x" if (name, relation) in known else "direct"
                    known[name, relation] = Known(value, position - 1, kind)
                    person, section_of_person = name, section
                case [name, "as", other, relation, "same"]:
                    assert (name, relation) not in known
                    known[name, relation] = Known(known[other, relation].value, position - 1, "same_x")
                    person = ""
                case [first, *_]:
                    assert first not in (*NAMES, "they")
            sentence = []
    assert not sentence, "the text ends in the middle of a sentence"
    return known


def check(document: Document, length: int) -> None:
    assert len(document.ids) == len(document.words) == length
    assert [WORDS[i] for i in document.ids] == list(document.words)
    assert document.words[0] == "<s>"
    known = read(document.words)
    for question in document.questions:
        q, colon, name, relation, mark = question.words
        assert (q, colon, mark) == ("q", ":", "?")
        assert question.ids == tuple(WORD_IDS[word] for word in question.words)
        assert known[name, relation] == Known(question.answer, question.position, question.kind)
        assert question.answer in VALUES[relation]
        assert WORDS[question.answer_id] == question.answer
        assert question.kind in RELIABLE_KINDS
        assert question.position + 1 < reusable_tokens(length) <= 0.8 * length
        assert document.prompt(question) == document.ids + question.ids
        assert len(document.prompt(question)) + 1 <= 2048
    answers = [question.answer for question in document.questions]
    assert len(set(answers)) == len(answers)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_answers_follow_from_the_text(seed: int) -> None:
    document = make_document(seed)
    check(document, LENGTH)
    assert [question.kind for question in document.questions] == [*RELIABLE_KINDS, *RELIABLE_KINDS]


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(min_value=300, max_value=LONGEST), st.integers(min_value=0, max_value=12))
def test_any_length_is_met_exactly(seed: int, length: int, questions: int) -> None:
    document = make_document(seed, length, questions)
    check(document, length)
    assert len(document.questions) == questions


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(min_value=SHORTEST, max_value=299))
def test_short_documents(seed: int, length: int) -> None:
    check(make_document(seed, length, questions=1), length)


def test_same_seed_same_document() -> None:
    assert make_document(3) == make_document(3)
    assert make_document(3).words != make_document(4).words
    assert unseen_document(3).words != make_document(3).words
    assert len(unseen_document(3).ids) == LENGTH
    assert len(unseen_document(3).questions) == QUESTIONS


def test_more_questions_leave_the_text_unchanged() -> None:
    few, many = make_document(5, questions=2), make_document(5, questions=9)
    assert few.words == many.words
    assert few.questions == many.questions[:2]


def test_documents_never_change() -> None:
    """The demo's figures and the model's accuracy were taken with these very tokens."""
    digest = hashlib.sha256(",".join(map(str, make_document(0).ids)).encode()).hexdigest()
    assert digest == "616713fc8d14f865e8a5b1dc10daac4d49d37d5643f1c6d315980262e3331ced"


def test_reader_is_not_fooled() -> None:
    """A changed value, or a later statement, changes what the reader takes from the text."""
    document = make_document(0)
    question = document.questions[0]
    _, _, name, relation, _ = question.words
    other = next(value for value in VALUES[relation] if value != question.answer)
    changed = list(document.words)
    changed[question.position] = other
    assert read(tuple(changed))[name, relation].value == other
    updated = (*document.words, name, relation, other, ".")
    assert read(updated)[name, relation] == Known(other, len(updated) - 2, "latest_x")


@pytest.mark.parametrize("length", [SHORTEST - 1, LONGEST + 1])
def test_length_out_of_bounds(length: int) -> None:
    with pytest.raises(ValueError, match=f"{SHORTEST} to {LONGEST} tokens, not {length}"):
        make_document(0, length)


def test_too_many_questions() -> None:
    with pytest.raises(ValueError, match="facts to ask about, not 500"):
        make_document(0, questions=500)


def test_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, demo.documents; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    checkout = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0
