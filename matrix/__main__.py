"""`python -m matrix`: renders MATRIX.md anew. With `--check` it writes nothing and exits 1 if the page is stale."""

import argparse
import sys

from matrix.cells import read_axes, read_rules
from matrix.render import PAGE, render, write_page
from matrix.results import latest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m matrix", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether MATRIX.md is what the results give")
    if not parser.parse_args().check:
        write_page()
        return 0
    axes = read_axes()
    if not PAGE.exists() or PAGE.read_text() != render(axes, read_rules(axes), latest()):
        print(f"{PAGE.name} is stale: run `python -m matrix`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
