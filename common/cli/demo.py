"""`kvlingua demo`: the main job, with real engines. It needs a clone: recipes and model aren't in the package."""

import argparse
import subprocess
import sys
from importlib import resources
from pathlib import Path

from kvlingua.common.errors import ConfigError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="one engine reads a document, the others answer from what it stored",
        description=__doc__,
        add_help=False,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    return subprocess.run([sys.executable, "-m", "demo", *options.rest], cwd=checkout(), check=False).returncode


def checkout() -> Path:
    """The clone this package is installed from. Raises ConfigError where there is none (`make setup` makes one)."""
    folder = Path(str(resources.files("kvlingua") / "__init__.py")).resolve().parents[2]
    if not (folder / "demo" / "__main__.py").is_file():
        raise ConfigError("the demo needs a clone of the project: git clone it, then `make demo` in its folder")
    return folder
