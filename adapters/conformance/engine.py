"""What the suite asks of an engine's harness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Setup:
    """How an engine is to be started: greedily answering, with no prefix cache of its own that `forget` can't empty.

    `store`: the folder of the store; None: without any of kvlingua. `page`: tokens per block or page. `config`:
    kvlingua's configuration, keys as in `Config`, `url` and `role` aside. `dtype`: of the weights and of the KV.
    """

    model: Path
    store: Path | None
    page: int
    role: Literal["both", "producer", "consumer"] = "both"
    dtype: str = "float32"
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """Token ids, and `options` that mean something to the harness only (see `Passing`)."""

    tokens: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Answered:
    """`tokens`: what followed each prompt, eight tokens. `reused`: tokens of all the prompts together that came from
    kvlingua. `computed`: those that the engine computed, by its own count and not by subtraction."""

    tokens: Sequence[Sequence[int]]
    reused: int
    computed: int


@dataclass(frozen=True)
class Passing:
    """Requests of a kind that passes through: `options` makes a prompt's options of its token ids; `reason`: that of
    `kvlingua_refusals_total`."""

    kind: str
    options: Callable[[Sequence[int]], Mapping[str, Any]]
    reason: str


class RunningEngine(Protocol):
    """An engine that is up, and knows whether kvlingua is on in it."""

    @property
    def namespace(self) -> str | None:
        """The beginning of the namespace that the line "kvlingua: on" names; None if it is off."""
        ...

    def generate(self, *prompts: Prompt) -> Answered:
        """Answer all prompts, handed over together."""
        ...

    def forget(self) -> None:
        """Empty the engine's own prefix cache, if it has one."""
        ...

    def cancel(self, prompt: Prompt, steps: int) -> bool:
        """Hand a prompt over, and give it up after about that many steps of the engine (0: at once). False if it had
        ended by then."""
        ...

    def metric(self, name: str, **labels: str) -> float:
        """Sum of kvlingua's samples of that name whose labels include these, over all its processes."""
        ...


class HangingStore(Protocol):
    """A folder whose file system can be made to hang: every system call on it blocks."""

    @property
    def path(self) -> Path: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...
