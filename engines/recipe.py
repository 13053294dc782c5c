"""A recipe: how the environment of one engine is built, as data (`recipes/*.toml`).

`vllm.toml` is the version that is built by default, `vllm-0.31.0.toml` another one, called `vllm==0.31.0`."""

import hashlib
import json
import platform
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
STANDINS = HERE / "standins"


class RecipeError(Exception):
    """A recipe doesn't say what a recipe must say, or there is none of that name."""


@dataclass(frozen=True)
class Step:
    """One step of a build; exactly one of `pip`, `copy` and `prepend` is set."""

    say: str
    pip: tuple[str, ...] = ()  # arguments of pip
    copy: str = ""  # a stand-in, put into site-packages
    prepend: str = ""  # a stand-in, put before the text of the file `to` in site-packages
    to: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.pip, self.copy, self.prepend))) != 1 or bool(self.prepend) != bool(self.to):
            raise RecipeError(f"step {self.say!r}: expected one of `pip`, `copy`, or `prepend` with `to`")

    @property
    def standin(self) -> str:
        return self.copy or self.prepend


@dataclass(frozen=True)
class Recipe:
    engine: str
    version: str
    disk_gb: float  # what the finished environment and pip's temporary files need
    steps: tuple[Step, ...]
    lock: str  # text of a pip requirements file; a step's argument "{lock}" stands for its path
    smoke: str  # Python code the finished environment must run
    environment: dict[str, str]  # variables of processes that run the engine; not part of the digest
    standins: Path
    base: "Recipe | None" = None  # whose packages it sees, behind its own

    @staticmethod
    def named(engine: str, recipes: Path = RECIPES, standins: Path = STANDINS) -> "Recipe":
        """Read the recipe of `vllm`, or of `vllm==0.31.0`, and the lock file and the base that it names.

        Raises:
            RecipeError: there is no such recipe, or it has a missing or unknown entry.
        """
        path = recipes / f"{engine.replace('==', '-')}.toml"
        if not path.is_file():
            raise RecipeError(f"no recipe for {engine!r}; there are: {', '.join(all_names(recipes))}")
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        try:
            steps = tuple(_step(entry) for entry in table.pop("steps"))
            lock_file = table.pop("lock", None)
            lock = (recipes / lock_file).read_text(encoding="utf-8") if lock_file else ""
            base = Recipe.named(table.pop("base"), recipes, standins) if "base" in table else None
            if base is not None:
                table = {"disk_gb": 1.5, "smoke": base.smoke, "environment": base.environment, **table}
            return Recipe(steps=steps, lock=lock, standins=standins, base=base, **table)
        except (KeyError, TypeError, OSError) as error:
            raise RecipeError(f"{path}: {error}") from error

    @property
    def digest(self) -> str:
        """Hex sha256 over all that decides what is built: steps, lock, stand-ins, smoke test, Python, machine."""
        built_from = {
            "engine": self.engine,
            "steps": [(step.pip, step.copy, step.prepend, step.to) for step in self.steps],
            "lock": self.lock,
            "standins": {
                f"{step.standin}/{file.relative_to(self.standins)}": hashlib.sha256(file.read_bytes()).hexdigest()
                for step in self.steps
                if step.standin
                for file in standin_files(self.standins / step.standin)
            },
            "smoke": self.smoke,
            "python": f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}",
        }
        if self.base is not None:
            built_from |= {"base": self.base.digest}
        return hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()


def _step(entry: dict[str, Any]) -> Step:
    return Step(**entry | {"pip": tuple(entry.get("pip", ()))})


def names(recipes: Path = RECIPES) -> list[str]:
    """The engines there are recipes for, sorted; each is the name of its default version, too."""
    return sorted(path.stem for path in recipes.glob("*.toml") if "-" not in path.stem)


def all_names(recipes: Path = RECIPES) -> list[str]:
    """Of every recipe, sorted."""
    return sorted(path.stem.replace("-", "==") for path in recipes.glob("*.toml"))


def standin_files(standin: Path) -> list[Path]:
    """The files of a stand-in (itself, if it is one file), sorted, without what Python left there."""
    if standin.is_file():
        return [standin]
    files = sorted(path for path in standin.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not files:
        raise RecipeError(f"stand-in {standin} is not there")
    return files
