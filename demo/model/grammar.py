"""The demo's language: texts that state facts, and questions about them.

A text is `<s>` and then sections, each opened by `<doc>`. What a section says, a statement ending in a dot:

    alice likes mango .             a fact
    they drinks tea .               the person named last, even if that was in the section before
    bob as alice likes same .       bob likes what alice likes; alice's fact stands in an earlier section
    alice likes plum .              said again later with another value: the later statement counts
    it rained all night ... .       a filler, states nothing

A question is `q : alice likes ?` and its answer is one word.
"""

import math
import random
from dataclasses import dataclass

from demo.model.vocabulary import FILLERS, NAMES, RELATIONS, VALUES

# How a fact was stated: by name; by `they`, named in the same section; by `they`, named in an earlier section;
# as the same as somebody's; as an update of an earlier statement.
KINDS = ("direct", "coref_in", "coref_x", "same_x", "latest_x")

MAX_POSITIONS = 2048  # of the model: a text, a question and the answer must fit

LONGEST_STEP = max(map(len, FILLERS)) + 6  # tokens: a filler and the longest statement
TOKENS_PER_FACT = 6.2  # with fillers and section marks, as counted over long texts


@dataclass(frozen=True)
class Style:
    """How often a text does what. All but `statements` are probabilities for each statement or section."""

    statements: tuple[int, int] = (5, 9)  # for each section, both ends included
    filler: float = 0.12
    pronoun: float = 0.4  # `they` after a person was named in the section
    carried: float = 0.5  # the section begins with `they`, the person of the section before
    same: float = 0.2
    update: float = 0.12


@dataclass(frozen=True)
class Cast:
    """Who and what a text talks about."""

    names: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """What holds at the end of a text. `position` is the index of the word that gives the value (or of `same`)."""

    name: str
    relation: str
    value: str
    kind: str
    position: int


@dataclass(frozen=True)
class Text:
    """Words, the first `<s>`, and the facts that hold at their end."""

    words: tuple[str, ...]
    facts: tuple[Fact, ...]


def draw_cast(
    rng: random.Random, facts: int, names: tuple[str, ...] = NAMES, relations: tuple[str, ...] = RELATIONS
) -> Cast:
    """Few names and few relations for a text of about `facts` facts, drawn from `names` and `relations`.

    Few, so that a person has several facts and a relation several persons: else "the only value of this relation in the
    text" is the answer, and nobody needs to look up who it belongs to.
    """
    least = math.ceil(1.2 * facts / len(names))
    most = len(relations)
    n_relations = min(most, max(least, round(facts ** rng.uniform(0.2, 0.7))))
    n_names = min(len(names), max(2, math.ceil(rng.uniform(1.2, 4.0) * facts / n_relations)))
    return Cast(tuple(rng.sample(names, n_names)), tuple(rng.sample(relations, n_relations)))


def write_text(rng: random.Random, style: Style, cast: Cast, sections: int, limit: int) -> Text:
    """A text of `sections` sections, ended early before it would become longer than `limit` tokens."""
    writer = _Writer(rng, style, cast, limit)
    for _ in range(sections):
        if not writer.write_section():
            break
    return Text(tuple(writer.words), tuple(writer.facts.values()))


def write_long_text(rng: random.Random, limit: int) -> Text:
    """A text of the default style that ends less than LONGEST_STEP tokens before `limit`."""
    cast = draw_cast(rng, round(limit / TOKENS_PER_FACT))
    return write_text(rng, Style(), cast, sections=limit, limit=limit)


def question_words(name: str, relation: str) -> tuple[str, ...]:
    """The question whose answer is the value of `relation` for `name`."""
    return ("q", ":", name, relation, "?")


class _Writer:
    """Writes sections one after another and keeps what they state."""

    def __init__(self, rng: random.Random, style: Style, cast: Cast, limit: int) -> None:
        self._rng = rng
        self._style = style
        self._cast = cast
        self._limit = limit
        self.words: list[str] = ["<s>"]
        self.facts: dict[tuple[str, str], Fact] = {}
        # Stated by name in an earlier section, and neither updated nor copied since.
        self._earlier: dict[tuple[str, str], Fact] = {}
        self._person: str | None = None  # whom `they` means
        self._named_here = False  # that person was named in this section

    def write_section(self) -> bool:
        """Append one section. False when the limit was reached."""
        rng, style = self._rng, self._style
        first = len(self.words) == 1
        self.words.append("<doc>")
        begun = len(self.words)
        self._named_here = False
        carried = rng.randint(1, 3) if self._person is not None and rng.random() < style.carried else 0
        statements = rng.randint(*style.statements)
        room = True
        for i in range(statements):
            room = len(self.words) + LONGEST_STEP <= self._limit
            if not room:
                break
            if i > 0 and rng.random() < style.filler:
                self.words += rng.choice(FILLERS)
            if i < carried or (self._named_here and self._person and rng.random() < style.pronoun):
                self._state_of_person()
            elif first or rng.random() >= style.update or not self._update():
                self._state(may_copy=i < statements - 1)
        for key, fact in self.facts.items():
            if fact.kind == "direct" and fact.position >= begun:
                self._earlier[key] = fact
        return room

    def _add(self, words: tuple[str, ...], name: str, relation: str, value: str, kind: str) -> None:
        self.words += words
        self.facts[name, relation] = Fact(name, relation, value, kind, position=len(self.words) - 2)

    def _state_of_person(self) -> None:
        name, relation = self._person, self._rng.choice(self._cast.relations)
        if name is None or (name, relation) in self.facts:
            return
        value = self._rng.choice(VALUES[relation])
        self._add(("they", relation, value, "."), name, relation, value, "coref_in" if self._named_here else "coref_x")

    def _state(self, may_copy: bool) -> None:
        rng = self._rng
        name, relation = rng.choice(self._cast.names), rng.choice(self._cast.relations)
        if (name, relation) in self.facts:
            return
        if may_copy and rng.random() < self._style.same:
            sources = [fact for key, fact in self._earlier.items() if key[1] == relation]
            if sources:
                source = rng.choice(sources)
                del self._earlier[source.name, relation]  # from here on it must not change
                self._add((name, "as", source.name, relation, "same", "."), name, relation, source.value, "same_x")
                self._person = None
                return
        value = rng.choice(VALUES[relation])
        self._add((name, relation, value, "."), name, relation, value, "direct")
        self._person, self._named_here = name, True

    def _update(self) -> bool:
        """Give an earlier fact another value. False when there is none to update."""
        if not self._earlier:
            return False
        old = self._rng.choice(list(self._earlier.values()))
        del self._earlier[old.name, old.relation]
        value = self._rng.choice([v for v in VALUES[old.relation] if v != old.value])
        self._add((old.name, old.relation, value, "."), old.name, old.relation, value, "latest_x")
        self._person, self._named_here = old.name, True
        return True
