"""A progress bar on standard error, where a person sits in front of it."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
WIDTH = 30


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields `items`; draws how many of `total` are done. Draws nothing when standard error is no terminal."""
    show = sys.stderr.isatty() and total > 0
    drawn = -1
    for done, item in enumerate(items):
        filled = done * WIDTH // total if total else WIDTH
        if show and filled != drawn:
            drawn = filled
            print(f"\r{what} [{'#' * filled:{WIDTH}}] {done}/{total}", end="", file=sys.stderr, flush=True)
        yield item
    if show:
        print(f"\r{'':{len(what) + WIDTH + 30}}\r", end="", file=sys.stderr, flush=True)
