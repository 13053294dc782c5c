"""The prompts of one run of the suite, each for one purpose, so that no test finds what another has stored."""

from collections.abc import Callable, Sequence

from kvlingua.adapters.conformance.engine import Prompt

CHUNK = 64  # tokens; the default of `Config`
ANSWER = 8  # tokens that are asked for


class Prompts:
    """`make(seed, tokens)` gives token ids, another text for each seed.

    `written`: stored by the writers. `whole`: two chunks of one of them and nothing else. `branched`: begins as one of
    them, then goes on otherwise. `negated`, `flipped`, `cut`: stored, then spoiled. `fresh`, ...: never
    stored before.
    """

    def __init__(self, make: Callable[[int, int], Sequence[int]]) -> None:
        def prompt(seed: int, tokens: int) -> Prompt:
            return Prompt(tuple(make(seed, tokens)))

        self.written = [prompt(1, 300), prompt(2, 410), prompt(3, 200)]
        self.whole = Prompt(self.written[0].tokens[: 2 * CHUNK])
        self.branched = Prompt((*self.written[1].tokens[: 2 * CHUNK + 30], *prompt(4, 150).tokens[1:]))
        self.negated, self.flipped, self.cut = prompt(10, 300), prompt(11, 300), prompt(12, 300)
        self.fresh, self.away, self.hanging, self.cancelled = (prompt(20 + number, 300) for number in range(4))
        self.passing = prompt(30, 280)
        self.long = prompt(40, 600)

    @property
    def stored(self) -> list[Prompt]:
        """What the writers are given."""
        return [*self.written, self.negated, self.flipped, self.cut]

    @property
    def all(self) -> list[Prompt]:
        others = [self.whole, self.branched, self.fresh, self.away, self.hanging, self.cancelled, self.passing]
        return [*self.stored, *others, self.long]


def chunks(*prompts: Prompt) -> int:
    """How many whole chunks the prompts have."""
    return sum(len(prompt) // CHUNK for prompt in prompts)


def length(*prompts: Prompt) -> int:
    return sum(map(len, prompts))


def common_tokens(one: Prompt, other: Prompt) -> int:
    """How many tokens both begin with."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
