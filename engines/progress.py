"""One line per step with the time it took; on a terminal the time runs along."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def step(line: str) -> Iterator[None]:
    """Print `line` and, when the block has ended well, how long it took."""
    start = time.monotonic()
    ended = threading.Event()
    terminal = sys.stdout.isatty()

    def run_along() -> None:
        while not ended.wait(1):
            print(f"\r{line} ... {time.monotonic() - start:.0f} s", end="", flush=True)

    print(f"{line} ...", end="", flush=True)
    ticker = threading.Thread(target=run_along, daemon=True)
    if terminal:
        ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = ""
    finally:
        ended.set()
        if terminal:
            ticker.join()
        took = f"{outcome} {time.monotonic() - start:.0f} s".strip()
        print(f"\r{line} ... {took}" if terminal else f" {took}", flush=True)
