"""The command `kvlingua`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from kvlingua.common.cli import demo, doctor, inspect, purge
from kvlingua.common.errors import KVLinguaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: done; 1: done, and something is wrong (damaged objects, ...); 2: it couldn't be done."""
    parser = argparse.ArgumentParser(
        prog="kvlingua", description="An interlingua for KV caches: what one engine has read, the others reuse."
    )
    parser.add_argument("--version", action="version", version=f"kvlingua {metadata.version('kvlingua')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, inspect, doctor, purge):
        command.add(commands)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "demo":  # passes its own options on
        options.rest = rest
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options)
    except (KVLinguaError, OSError) as problem:
        print(f"kvlingua {options.command}: {problem}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"kvlingua {options.command}: there is not enough memory", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status
