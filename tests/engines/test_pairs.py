"""Every ordered pair of the three engines, across processes, in fp32: what one has read the other reuses, and answers
as if cold; with both controls. The same as `make matrix` runs of all versions and sizes (matrix/README.md)."""

from collections.abc import Mapping

import pytest

from demo.job import PAGES
from engines.launch import engines
from matrix import results
from matrix.cells import Cell, read_groups
from matrix.pairing import engine_of
from matrix.render import write_pages
from matrix.run import run

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

ENGINES = engines()
GROUP = next(group for group in read_groups() if group.title == "llama, float32, cpu")
SIDES = {
    engine: next(side for side in GROUP.sides if (engine_of(side), side.page, side.tp) == (engine, PAGES[engine], 1))
    for engine in ENGINES
}
CELLS = [GROUP.cell(producer, consumer) for producer in SIDES.values() for consumer in SIDES.values()]


@pytest.fixture(scope="module")
def red() -> dict[Cell, list[str]]:
    """What is wrong with each cell; the results are recorded."""
    found: dict[Cell, list[str]] = {}

    def record(cell: Cell, word: str, versions: Mapping[str, str], detail: str) -> None:
        found[cell] = [] if word == "green" else [detail]
        results.append(cell, word, versions, detail)

    for line in run([GROUP], CELLS, record=record):
        next(lines for cell, lines in found.items() if line.startswith(f"{cell}: ")).append(line)
    write_pages()
    return found


@pytest.mark.parametrize("consumer", ENGINES)
@pytest.mark.parametrize("producer", ENGINES)
def test_pair(red: dict[Cell, list[str]], producer: str, consumer: str) -> None:
    assert red[GROUP.cell(SIDES[producer], SIDES[consumer])] == []
