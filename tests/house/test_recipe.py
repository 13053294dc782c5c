"""Recipes say how an environment is built; their digest changes with whatever changes the result."""

from pathlib import Path

import pytest

from engines.recipe import Recipe, RecipeError, names

RECIPE = """\
engine = "toy"
version = "1"
disk_gb = 0.001
lock = "toy.lock.txt"
smoke = "pass"

[[steps]]
say = "copying"
copy = "kernel"

[environment]
TOY = "1"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(RECIPE)
    (tmp_path / "toy.lock.txt").write_text("one==1\n")
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "__init__.py").write_text("x = 1\n")
    return tmp_path


def digest(folder: Path) -> str:
    return Recipe.named("toy", folder, folder).digest


def test_the_shipped_recipes_are_whole() -> None:
    assert names() == ["sglang", "vllm"]
    for name in names():
        recipe = Recipe.named(name)
        assert recipe.engine == name
        locked = {line.split("==")[0].lower().replace("_", "-") for line in recipe.lock.splitlines() if "==" in line}
        assert {"torch", "transformers", "pydantic", "xxhash", "prometheus-client", "safetensors"} <= locked
        assert len(recipe.digest) == 64


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("toy.toml", 'smoke = "pass"', 'smoke = "import this"'),
        ("toy.toml", 'copy = "kernel"', 'copy = "kernel"\n\n[[steps]]\nsay = "listing"\npip = ["list"]'),
        ("toy.lock.txt", "one==1", "one==2"),
        ("kernel/__init__.py", "x = 1", "x = 2"),
    ],
)
def test_digest_changes_with_what_is_built(folder: Path, file: str, old: str, new: str) -> None:
    before = digest(folder)
    path = folder / file
    path.write_text(path.read_text().replace(old, new))
    assert digest(folder) != before


def test_digest_changes_with_a_file_more_in_a_standin(folder: Path) -> None:
    before = digest(folder)
    (folder / "kernel" / "more.py").touch()
    assert digest(folder) != before


def test_digest_stays_with_what_is_not_built(folder: Path) -> None:
    before = digest(folder)
    (folder / "toy.toml").write_text(
        "# a comment\n"
        + RECIPE.replace('TOY = "1"', 'TOY = "2"').replace("0.001", "0.002").replace("copying", "taking")
    )
    (folder / "kernel" / "__pycache__").mkdir()
    (folder / "kernel" / "__pycache__" / "left.pyc").touch()
    assert digest(folder) == before


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe for 'vlm'; there are: sglang, sglang==0.5.20, .*, vllm, vllm=="):
        Recipe.named("vlm")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('version = "1"\n', "", "version"),
        ('version = "1"', 'version = "1"\ncolour = "red"', "colour"),
        ('copy = "kernel"', "", "expected one of"),
        ('copy = "kernel"', 'copy = "kernel"\npip = ["check"]', "expected one of"),
        ('copy = "kernel"', 'prepend = "kernel"', "expected one of"),
    ],
)
def test_a_broken_recipe_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "toy.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        Recipe.named("toy", folder, folder)


def test_a_standin_that_is_not_there_is_refused(folder: Path) -> None:
    (folder / "toy.toml").write_text(RECIPE.replace('copy = "kernel"', 'copy = "kernal"'))
    with pytest.raises(RecipeError, match="kernal"):
        digest(folder)
