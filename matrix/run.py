"""Runs cells: each side that has any to run is started once to store, and once to reuse what all others have stored."""

import fnmatch
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.launch import HF, available
from matrix import results
from matrix.cells import Cell, Group, Rule, Side, rule_of
from matrix.models import model_of
from matrix.pairing import Outcome, consume, engine_of, produce
from matrix.results import Result, tree_digest

GIGABYTES = 4.0  # of memory, for one engine
CPU = "cpu"  # what this machine has


def wanted(groups: Sequence[Group], rules: Sequence[Rule], pattern: str, done: Mapping[Cell, Result]) -> list[Cell]:
    """The cells to be run: those that match, that no rule excludes, and that aren't green with these very sources."""
    sources = tree_digest()
    found = []
    for group in groups:
        for cell in group.cells():
            if group.hardware != CPU or rule_of(cell, rules) or not fnmatch.fnmatch(str(cell), f"*{pattern}*"):
                continue
            before = done.get(cell)
            if before is None or before.verdict != "green" or before.sources != sources:
                found.append(cell)
    return found


def engines_needed(cells: Sequence[Cell]) -> list[str]:
    """The engines, as `python -m engines build` calls them, whose environments aren't there yet."""
    sides = {side for cell in cells for side in (cell.producer, cell.consumer)}
    return sorted(engine for engine in {engine_of(side) for side in sides} if engine != HF and not available(engine))


def run(
    groups: Sequence[Group],
    cells: Sequence[Cell],
    say: Callable[[str], None] = print,
    record: Callable[[Cell, str, Mapping[str, str], str], object] = results.append,
) -> list[str]:
    """Run these cells; a line for each that is red. `record` is called with each: results.append by default."""
    red: list[str] = []
    for group in groups:
        pending = [cell for cell in cells if cell in set(group.cells())]
        if pending:
            with tempfile.TemporaryDirectory(prefix="kvlingua-matrix-") as work:
                red += _run_group(group, pending, Path(work), say, record)
    return red


def at_once() -> int:
    """How many engines run at a time: as many as there are cores and memory for."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    return max(1, min(os.cpu_count() or 1, int(available / GIGABYTES)))


def _run_group(
    group: Group,
    cells: Sequence[Cell],
    work: Path,
    say: Callable[[str], None],
    record: Callable[[Cell, str, Mapping[str, str], str], object],
) -> list[str]:
    model = model_of(group.family, work)
    producers = list(dict.fromkeys(cell.producer for cell in cells))
    consumers = list(dict.fromkeys(cell.consumer for cell in cells))
    say(f"{group.title}: {len(cells)} cells, {len(producers)} sides store, {len(consumers)} reuse")
    red: list[str] = []
    produced: dict[Side, Path] = {}
    versions: dict[Side, str] = {}

    def finished(cell: Cell, outcome: Outcome) -> None:
        word = "red" if outcome.problems else "green"
        sides = {"producer": cell.producer, "consumer": cell.consumer}
        taking_part = {role: f"{side.engine} {versions[side]}" for role, side in sides.items() if side in versions}
        record(cell, word, taking_part, outcome.detail)
        if outcome.problems:
            red.append(f"{cell}: {'; '.join(outcome.problems)}")
            say(f"RED {red[-1]}")

    def store(side: Side) -> None:
        try:
            produced[side], versions[side] = produce(side, group, model, work)
        except Exception as error:  # noqa: BLE001  one side that can't be run doesn't keep the others from it
            say(f"{side.label} can't store: {error}")

    def reuse(side: Side) -> None:
        mine = [cell for cell in cells if cell.consumer == side]
        try:
            stores = {cell.producer: produced[cell.producer] for cell in mine if cell.producer in produced}
            found, versions[side] = consume(side, group, model, work, stores)
        except Exception as error:  # noqa: BLE001  likewise
            say(f"{side.label} can't reuse: {error}")
            said = (str(error) or repr(error)).splitlines()[0]
            found = {cell.producer: Outcome([said], "not run to its end") for cell in mine}
        for cell in mine:
            lost = Outcome(["its producer didn't run to its end"], "not run to its end")
            finished(cell, found.get(cell.producer, lost))
        say(f"{side.label}: {sum(not outcome.problems for outcome in found.values())} of {len(mine)} green")

    with ThreadPoolExecutor(at_once()) as pool:
        list(pool.map(store, producers))
        list(pool.map(reuse, consumers))
    return red
