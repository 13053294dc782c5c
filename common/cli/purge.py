"""`kvlingua purge`: remove stored objects. Engines that are running go on: what is gone is a miss."""

import argparse
import re
import sys
import time

from kvlingua.common.cli.progress import progress
from kvlingua.common.cli.sizes import size
from kvlingua.common.cli.target import add_target, existing_store
from kvlingua.common.errors import ConfigError
from kvlingua.common.identity.keys import NAMESPACE_FILE

_DIGEST = re.compile(r"[0-9a-f]{1,64}")
_AGE = re.compile(r"([0-9]+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BATCH = 256


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("purge", help="remove stored objects", description=__doc__)
    add_target(parser)
    parser.add_argument("--namespace", metavar="HEX", help="only the namespace whose digest begins so")
    parser.add_argument("--unused-for", metavar="AGE", help="only what nobody has used for so long: 90m, 12h, 7d")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.set_defaults(run=run)


def age_seconds(text: str | None) -> int:
    """`7d` -> 604800. Raises ConfigError for what isn't an age."""
    if text is None:
        return 0
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--unused-for takes a number and s, m, h or d, such as 12h or 7d, not {text!r}")
    return int(match[1]) * _SECONDS[match[2]]


def digest_start(text: str | None) -> str:
    """What the keys to be removed begin with. Raises ConfigError for what no digest begins with."""
    if text is None:
        return ""
    if _DIGEST.fullmatch(text) is None:
        raise ConfigError(
            f"--namespace takes 1 to 64 lower-case hexadecimal digits, as `kvlingua inspect` shows them, not {text!r}"
        )
    return text


def run(options: argparse.Namespace) -> int:
    start, before = digest_start(options.namespace), time.time() - age_seconds(options.unused_for)
    store = existing_store(options.target)
    entries = list(store.scan(start))
    doomed = [entry for entry in entries if entry.mtime <= before]
    # A namespace's JSON goes with its last object, not before.
    kept = {entry.key.partition("/")[0] for entry in entries if entry.mtime > before}
    doomed = [
        entry for entry in doomed if not (entry.key.endswith(NAMESPACE_FILE) and entry.key.partition("/")[0] in kept)
    ]
    total = sum(entry.nbytes for entry in doomed)
    if not doomed:
        print(f"nothing to remove in {store.describe()}")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{len(doomed)} objects ({size(total)}) would be removed: say --yes where nobody can be asked"
            )
        print(f"remove {len(doomed)} objects ({size(total)}) from {store.describe()}? [y/N] ", end="", flush=True)
        if input().strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return 0
    keys = [entry.key for entry in doomed]
    batches = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    for batch in progress(batches, len(batches), "removing"):
        store.delete_many(batch)
    print(f"removed {len(doomed)} objects, {size(total)}")
    return 0
