"""Cells of the matrix: the product of the axes, and the rules that declare some of them unsupported."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One combination of axis values; `values` is sorted by axis name, so that equal combinations are equal cells."""

    values: tuple[tuple[str, str], ...]

    @staticmethod
    def of(values: Mapping[str, str]) -> "Cell":
        return Cell(tuple(sorted(values.items())))

    def __getitem__(self, axis: str) -> str:
        return dict(self.values)[axis]

    def matches(self, when: Mapping[str, str]) -> bool:
        return set(when.items()) <= set(self.values)

    def __str__(self) -> str:
        return ", ".join(f"{axis}={value}" for axis, value in self.values)


@dataclass(frozen=True, slots=True)
class Rule:
    when: Mapping[str, str]
    reason: str


def read_axes(path: Path = FOLDER / "axes.toml") -> dict[str, list[str]]:
    """Axis name -> its values, in the file's order. ValueError if an axis is not a list of distinct strings."""
    axes = tomllib.loads(path.read_text())
    for axis, values in axes.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{path}: axis {axis!r} must be a list of strings, it is {values!r}")
        if len(set(values)) != len(values):
            raise ValueError(f"{path}: axis {axis!r} names a value twice: {values}")
    return axes


def all_cells(axes: Mapping[str, list[str]]) -> list[Cell]:
    return [Cell.of(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def read_rules(axes: Mapping[str, list[str]], path: Path = FOLDER / "rules.toml") -> list[Rule]:
    """The declared rules. ValueError for one without a reason, or that names no axis value: it would match nothing."""
    rules = []
    for row in tomllib.loads(path.read_text()).get("unsupported", []):
        when, reason = row.get("when"), row.get("reason")
        if not isinstance(when, dict) or not when or not isinstance(reason, str) or not reason:
            raise ValueError(f"{path}: a rule needs `when` (axis = value) and `reason`, it is {row!r}")
        for axis, value in when.items():
            if value not in axes.get(axis, []):
                raise ValueError(f"{path}: {axis} = {value!r} is not in axes.toml: the rule would match nothing")
        rules.append(Rule(when, reason))
    return rules


def unsupported(cell: Cell, rules: list[Rule]) -> str | None:
    """The reason why `cell` is declared unsupported, or None."""
    return next((rule.reason for rule in rules if cell.matches(rule.when)), None)
