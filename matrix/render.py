"""MATRIX.md: a table of producers and consumers, and a line for every cell that was run."""

from collections.abc import Mapping
from pathlib import Path

from matrix.cells import FOLDER, Cell, Rule, all_cells, read_axes, read_rules, unsupported
from matrix.results import RESULTS, Result, latest

PAGE = FOLDER / "MATRIX.md"
INTRODUCTION = """\
# What was reused by whom

Rendered by `python -m matrix` from `axes.toml`, `rules.toml` and `results/`; don't edit. A cell is green when a real
consumer process reused what a real producer process had stored, gave the tokens of its own cold run, and both controls
failed as they must (spoiled KV changes the tokens or is refused). A cell that nobody ran says untested.
"""


def verdict(cell: Cell, rules: list[Rule], results: Mapping[Cell, Result]) -> str:
    reason = unsupported(cell, rules)
    if reason:
        return f"unsupported: {reason}"
    return results[cell].verdict if cell in results else "untested"


def render(axes: Mapping[str, list[str]], rules: list[Rule], results: Mapping[Cell, Result]) -> str:
    """The page as text. One table per combination of the axes other than producer and consumer."""
    cells = all_cells(axes)
    others = sorted({tuple(pair for pair in cell.values if pair[0] not in ("producer", "consumer")) for cell in cells})
    page = [INTRODUCTION]
    for fixed in others:
        page.append(f"## {', '.join(f'{axis} {value}' for axis, value in fixed)}\n")
        page.append("| producer \\ consumer | " + " | ".join(axes["consumer"]) + " |")
        page.append("|---" * (len(axes["consumer"]) + 1) + "|")
        for producer in axes["producer"]:
            row = [
                Cell.of({**dict(fixed), "producer": producer, "consumer": consumer}) for consumer in axes["consumer"]
            ]
            page.append(f"| {producer} | " + " | ".join(verdict(cell, rules, results) for cell in row) + " |")
        page.append("")
    ran = [results[cell] for cell in cells if cell in results]
    if ran:
        page.append("## Last run of each cell\n")
        page.append("| producer | consumer | dtype | verdict | date | commit | versions | hardware | detail |")
        page.append("|---|---|---|---|---|---|---|---|---|")
        for result in ran:
            versions = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
            where = [result.cell["producer"], result.cell["consumer"], result.cell["dtype"]]
            columns = [*where, result.verdict, result.date, result.commit, versions, result.hardware, result.detail]
            page.append("| " + " | ".join(columns) + " |")
        page.append("")
    return "\n".join(page)


def write_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    axes = read_axes()
    text = render(axes, read_rules(axes), latest(results))
    temporary = page.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(page)
