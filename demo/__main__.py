"""`python -m demo`: one engine reads a document, the others answer questions about it from the shared cache."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from demo.documents import LENGTH, LONGEST, QUESTIONS, SHORTEST
from demo.job import run
from demo.table import table
from engines.drivers.driver import DriverError
from engines.environment import BuildError
from engines.launch import engines as known_engines
from kvlingua.common.cli.inspect import report
from kvlingua.common.cli.target import existing_store
from kvlingua.common.errors import KVLinguaError


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = known_engines()
    parser = argparse.ArgumentParser(prog="kvlingua demo", description=__doc__)
    parser.add_argument(
        "--engines",
        default=",".join(known),
        help="which engines, in which order; the first one reads the document; a single one runs twice, as two "
        "processes (default: %(default)s)",
    )
    parser.add_argument(
        "--store", help="URL of the store to share, e.g. file:///var/cache/kv (default: a fresh folder)"
    )
    parser.add_argument("--tokens", type=int, default=LENGTH, help="length of the document (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which document (default: %(default)s)")
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs (default: a fresh one)")
    options = parser.parse_args(arguments)
    options.engines = [name.strip() for name in options.engines.split(",") if name.strip()]
    unknown = [name for name in options.engines if name not in known]
    if unknown or not options.engines:
        parser.error(f"--engines takes a list of {', '.join(known)}, not {', '.join(unknown) or 'nothing'}")
    if len(options.engines) == 1:
        options.engines *= 2
    if len(options.engines) > QUESTIONS:
        parser.error(f"--engines takes at most {QUESTIONS}, one for each question")
    if options.store and not options.store.startswith("file:///"):
        parser.error(f"--store takes a store that processes share, file:///folder, not {options.store}")
    if not SHORTEST <= options.tokens <= LONGEST:
        parser.error(f"--tokens must be from {SHORTEST} to {LONGEST}, not {options.tokens}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: every answer right, everything reused that should be. 1: not so. 2: it couldn't be run."""
    options = parse(arguments)
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="kvlingua-demo-"))
    store = options.store or (work / "store").as_uri()
    logs = options.logs or work / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    try:
        rows = run(options.engines, store=store, length=options.tokens, seed=options.seed, logs=logs, say=say)
        print(table(rows), end="\n\n")
        print(report(existing_store(store)))
    except (BuildError, DriverError, KVLinguaError) as problem:
        print(f"kvlingua demo: {problem}\nlogs: {logs}", file=sys.stderr)
        return 2
    problems = [problem for row in rows for problem in row.problems()]
    for line in problems:
        print(f"NOT HELD: {line}", file=sys.stderr)
    say(f"{'all held' if not problems else 'not all held'}; store {store}, logs {logs}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
