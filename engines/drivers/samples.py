"""Reading the metrics files that kvlingua writes, one per process, in Prometheus' text format."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def total(folder: Path, name: str, labels: Mapping[str, str]) -> float:
    """Sum of the samples called `name` whose labels include `labels`, over all files in `folder`."""
    return sum(value for found, has, value in samples(folder) if found == name and labels.items() <= has.items())


def samples(folder: Path) -> Iterator[tuple[str, dict[str, str], float]]:
    """Every sample in the folder's *.prom files: name, labels, value."""
    for file in sorted(folder.glob("*.prom")):
        for line in file.read_text().splitlines():
            if match := _SAMPLE.match(line):
                yield match["name"], dict(_LABEL.findall(match["labels"] or "")), float(match["value"])
