"""Rules of the house that no linter checks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[2]
PACKAGE = ("adapters", "common", "layouts")
LONGEST = 350  # lines


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((CLONE / folder).rglob("*.py"))


def names_environ(source: str) -> bool:
    """Whether Python code reads the environment's variables."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"})
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {a.name for a in node.names} & {"environ", "getenv"}
        )
        for node in ast.walk(ast.parse(source))
    )


def test_environment_variables_are_read_where_they_may_be() -> None:
    assert names_environ("import os\nos.environ['X']")
    assert names_environ("from os import getenv")
    assert not names_environ("import os\nos.getpid()")
    readers = {str(path.relative_to(CLONE)) for path in sources(*PACKAGE) if names_environ(path.read_text("utf-8"))}
    # Settings are read by the one, and where the user's caches are by the other.
    assert readers == {"common/config.py", "layouts/cache_home.py"}


def test_rocm_is_no_package() -> None:
    """AMD's own bindings own the namespace package `rocm`; an `__init__.py` here would hide them."""
    assert (CLONE / "rocm").is_dir()
    assert not list((CLONE / "rocm").rglob("__init__.py"))


@pytest.mark.parametrize("folder", PACKAGE)
def test_the_package_links_to_the_top_level_folders(folder: str) -> None:
    link = CLONE / "src" / "kvlingua" / folder
    assert link.is_symlink()
    assert link.resolve() == CLONE / folder


def test_no_file_is_too_long_to_live_in() -> None:
    files = [*sources(*PACKAGE, "engines", "demo", "benchmarks", "matrix", "tests", "src")]
    files += [path for folder in ("csrc", "rocm") for path in (CLONE / folder).rglob("*") if path.is_file()]
    lengths = {str(path.relative_to(CLONE)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert lengths
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = {"util", "utils", "helper", "helpers", "misc", "manager"}
    assert [path for path in sources(*PACKAGE, "engines", "demo", "matrix") if path.stem in empty] == []
