"""Cells of the matrix: who stored, who reused, what model and dtype, on what hardware; and rules for those not run."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ANY = ("engine", "version", "page", "tp")  # keys of a rule that match either side


@dataclass(frozen=True, slots=True, order=True)
class Side:
    """An engine as it takes part. page: tokens per block or page. tp: tensor-parallel ranks."""

    engine: str
    version: str
    page: int
    tp: int

    @property
    def label(self) -> str:
        page = "" if self.engine == "hf" else f", page {self.page}"
        return f"{self.engine} {self.version}{page}{f', TP {self.tp}' if self.tp > 1 else ''}"

    @property
    def file_name(self) -> str:
        return f"{self.engine}-{self.version}-{self.page}-{self.tp}"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """`consumer` reuses what `producer` has stored."""

    family: str
    dtype: str
    hardware: str
    producer: Side
    consumer: Side

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """From what `row` gave. TypeError or KeyError for anything else."""
        sides = {name: Side(**row[name]) for name in ("producer", "consumer")}
        return cls(**{**row, **sides})

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def matches(self, when: Mapping[str, Any]) -> bool:
        return all(str(value) in self._values(key) for key, value in when.items())

    def _values(self, key: str) -> set[str]:
        name, _, field = key.partition(".")
        if field:
            return {str(getattr(getattr(self, name), field))}
        if key in ANY:
            return {str(getattr(side, key)) for side in (self.producer, self.consumer)}
        return {str(getattr(self, key))}

    def __str__(self) -> str:
        return f"{self.producer.label} -> {self.consumer.label} ({self.family}, {self.dtype}, {self.hardware})"


@dataclass(frozen=True, slots=True)
class Group:
    """All ordered pairs of some sides with one model, dtype and hardware."""

    family: str
    dtype: str
    hardware: str
    sides: tuple[Side, ...]

    @property
    def title(self) -> str:
        return f"{self.family}, {self.dtype}, {self.hardware}"

    def cell(self, producer: Side, consumer: Side) -> Cell:
        return Cell(self.family, self.dtype, self.hardware, producer, consumer)

    def cells(self) -> Iterator[Cell]:
        for producer in self.sides:
            for consumer in self.sides:
                yield self.cell(producer, consumer)


@dataclass(frozen=True, slots=True)
class Rule:
    when: Mapping[str, Any]
    verdict: str
    reason: str


def read_groups(path: Path = FOLDER / "axes.toml") -> list[Group]:
    """The groups, in the file's order. ValueError for a side that is named twice, or in a group and not at all."""
    table = tomllib.loads(path.read_text())
    sides = [Side(**row) for row in table["side"]]
    by_label = {side.label: side for side in sides}
    if len(by_label) != len(sides):
        raise ValueError(f"{path}: a side stands there twice")
    groups = []
    for row in table["group"]:
        labels = row.pop("sides", list(by_label))
        unknown = [label for label in labels if label not in by_label]
        if unknown:
            raise ValueError(f"{path}: no side is called {unknown[0]!r}; there are: {'; '.join(by_label)}")
        groups.append(Group(sides=tuple(by_label[label] for label in labels), **row))
    return groups


def read_rules(groups: Sequence[Group], path: Path = FOLDER / "rules.toml") -> list[Rule]:
    """The rules. ValueError for one without a reason, or that matches no cell."""
    cells = [cell for group in groups for cell in group.cells()]
    rules = []
    for row in tomllib.loads(path.read_text()).get("rule", []):
        if not (row.get("when") and row.get("verdict") and row.get("reason")):
            raise ValueError(f"{path}: a rule needs `when`, `verdict` and `reason`, it is {row!r}")
        try:
            matching = any(cell.matches(row["when"]) for cell in cells)
        except AttributeError as error:
            raise ValueError(f"{path}: {row['when']}: {error}") from error
        if not matching:
            raise ValueError(f"{path}: the rule for {row['when']} would match nothing")
        rules.append(Rule(row["when"], row["verdict"], row["reason"]))
    return rules


def rule_of(cell: Cell, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that says why `cell` isn't run, if one does."""
    return next((rule for rule in rules if cell.matches(rule.when)), None)
