"""`python -m matrix run|render`: run cells and render the pages; only render them, or check that they aren't stale."""

import argparse
import sys

from engines.environment import Environment, check_free_space, default_root
from engines.recipe import Recipe
from engines.site import site
from matrix.cells import read_groups, read_rules
from matrix.render import pages, write_pages
from matrix.results import latest
from matrix.run import engines_needed, run, wanted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m matrix", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the cells that aren't green with these sources, then render")
    running.add_argument("cells", nargs="?", default="*", help="only those whose name has this; * and ? stand for any")
    running.add_argument("--again", action="store_true", help="also those that are green")
    running.add_argument("--list", action="store_true", help="only print what would be run")
    rendering = commands.add_parser("render", help="write MATRIX.md and MATRIX.html")
    rendering.add_argument("--check", action="store_true", help="write nothing, exit 1 if they are stale")
    options = parser.parse_args()
    if options.command == "render" and options.check:
        stale = [path.name for path, text in pages().items() if not path.exists() or path.read_text() != text]
        if stale:
            print(f"{', '.join(stale)}: stale, run `python -m matrix render`", file=sys.stderr)
        return 1 if stale else 0
    if options.command == "render":
        write_pages()
        return 0
    groups = read_groups()
    cells = wanted(groups, read_rules(groups), options.cells, {} if options.again else latest())
    if options.list or not cells:
        print("\n".join(map(str, cells)) if cells else "nothing to run")
        return 0
    environments = [Environment(Recipe.named(engine), default_root()) for engine in engines_needed(cells)]
    check_free_space(environments)
    for environment in environments:
        environment.build()
    site()
    red = run(groups, cells)
    write_pages()
    print(f"{len(cells) - len(red)} of {len(cells)} cells green; see matrix/MATRIX.md")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
