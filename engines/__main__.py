"""Command line: `python -m engines build|path|list|clean|site`."""

import argparse
import sys

from engines.environment import BuildError, Environment, check_free_space, clean, default_root
from engines.launch import python_of
from engines.progress import say
from engines.recipe import Recipe, RecipeError, all_names, names
from engines.site import site


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engines", description="The environments kvlingua's engines run in."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the environments that aren't there yet")
    others = " ".join(name for name in all_names() if name not in names())
    build.add_argument("engine", nargs="*", help=f"which ones (default: {' '.join(names())}; others: {others})")
    path = commands.add_parser("path", help="print the Python of an engine's environment")
    path.add_argument("engine")
    commands.add_parser("list", help="which environments exist, and where")
    commands.add_parser("clean", help="remove all of them, for all clones of this user")
    commands.add_parser("site", help="install this clone into build/site, which engines get as PYTHONPATH")
    given = parser.parse_args(arguments)
    try:
        if given.command == "build":
            environments = [Environment(Recipe.named(name), default_root()) for name in given.engine or names()]
            check_free_space(environments)
            for environment in environments:
                environment.build()
        elif given.command == "path":
            say(str(python_of(given.engine)))
        elif given.command == "list":
            for environment in [Environment(Recipe.named(name), default_root()) for name in all_names()]:
                state = "ready" if environment.ready else "not built"
                say(f"{environment.recipe.engine} {environment.recipe.version}: {state}, {environment.folder}")
        elif given.command == "clean":
            clean(default_root())
        else:
            site()
    except KeyboardInterrupt:
        print("engines: interrupted", file=sys.stderr)
        return 130
    except (BuildError, RecipeError, OSError) as error:
        print(f"engines: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
