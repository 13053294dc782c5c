"""Earlier releases of an engine against transformers: what transformers has stored, and a copy of it that is spoiled in
part."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.launch import available
from tests.engines.texts import chunks, objects_of, text
from tests.spoil import flip_byte, negate_v

PLAIN, NEGATED, FLIPPED, PRODUCED = ASKS = [text(seed) for seed in range(300, 304)]


@dataclass(frozen=True)
class Stored:
    """folder: the store. The answers are transformers' own."""

    folder: Path
    plain: list[int]
    negated: list[int]
    flipped: list[int]
    produced: list[int]


def needs(release: str) -> None:
    if not available(release):
        pytest.skip(f"its environment isn't built: python -m engines build {release}")


def store_all(folder: Path) -> Stored:
    """All texts, by transformers."""
    with Driver("hf", MODEL, log=folder / "hf.log", url=(folder / "store").as_uri(), page=1) as driver:
        answers = [driver.generate(ask).answers[0].tokens for ask in ASKS]
        driver.wait_objects(chunks(*ASKS))
    return Stored(folder / "store", *answers)


def spoiled_copy(stored: Stored, to: Path) -> Path:
    """Without PRODUCED, with all of NEGATED's V negated under valid checksums, and one damaged object of FLIPPED."""
    shutil.copytree(stored.folder, to)
    for path in objects_of(to, PRODUCED):
        path.unlink()
    assert sum(map(negate_v, objects_of(to, NEGATED))) == chunks(NEGATED)
    assert flip_byte(objects_of(to, FLIPPED)[3]) == 1
    return to
