"""What the suite waits for and compares."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvlingua.adapters.conformance.damage import objects_of
from kvlingua.adapters.conformance.engine import Answered, Prompt
from kvlingua.adapters.conformance.prompts import CHUNK

# Generous, because the machine may be busy; the hanging store is waited for this long, once per load.
WAIT_SECONDS = 60.0
Cold = Mapping[tuple[int, ...], Sequence[int]]
"""The answers of an engine without kvlingua, by prompt."""


def assert_right(answered: Answered, cold: Cold, *prompts: Prompt) -> None:
    assert [list(tokens) for tokens in answered.tokens] == [list(cold[tuple(each.tokens)]) for each in prompts]


def count(store: Path, prompt: Prompt | None = None) -> int:
    """How many objects there are, of `prompt` or in all."""
    if prompt is not None:
        return len(objects_of(store, prompt.tokens, CHUNK))
    return sum(1 for _ in store.rglob("*.safetensors"))


def copy_store(store: Path, to: Path) -> Path:
    """The files keep their times; the folders are private, as a store's have to be."""
    shutil.copytree(store, to)
    return to


def wait_for(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < end, f"no {what} within {WAIT_SECONDS:.0f} s"
        time.sleep(0.1)
