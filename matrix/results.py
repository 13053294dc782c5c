"""Measured results: one JSON object a line in results/*.jsonl, appended by the runner."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from matrix.cells import FOLDER, Cell

RESULTS = FOLDER / "results"
# What engines' processes run of kvlingua, and how cells are run and judged.
TESTED = (
    *(f"{folder}/**/*" for folder in ("adapters", "common", "layouts", "csrc", "rocm", "engines", "demo")),
    *(f"matrix/{name}.py" for name in ("models", "texts", "pairing")),
    "tests/spoil.py",
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a cell showed.

    verdict  "green" or "red"
    commit   short hash of the tree that was run, with "+" if it had uncommitted changes
    sources  `tree_digest` of the tree that was run
    versions of what took part, e.g. {"producer": "vllm 0.32.0", "consumer": "hf 5.23.0"}
    hardware one phrase, e.g. "CPU, AMD EPYC"
    detail   a few words, e.g. "1472 of 1501 reused"
    """

    cell: Cell
    verdict: str
    commit: str
    sources: str
    versions: Mapping[str, str]
    hardware: str
    date: str
    detail: str

    def line(self) -> str:
        row = {
            "cell": self.cell.row(),
            "verdict": self.verdict,
            "commit": self.commit,
            "sources": self.sources,
            "versions": dict(self.versions),
            "hardware": self.hardware,
            "date": self.date,
            "detail": self.detail,
        }
        return json.dumps(row, sort_keys=True) + "\n"


def current_commit(folder: Path = FOLDER.parent) -> str:
    """Short hash of HEAD, "+" behind it when tracked files differ; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=10", "HEAD")
    # The results themselves change with every run; they are not what was tested.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!matrix/results", ":!matrix/MATRIX.*")
    return (commit or "unknown") + ("+" if changed else "")


def tree_digest(clone: Path = FOLDER.parent) -> str:
    """Beginning of a sha256 over the names and bytes of all that decides how a cell comes out."""
    digest = hashlib.sha256()
    for pattern in TESTED:
        for path in sorted(clone.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(clone)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def hardware() -> str:
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            return "CPU, " + row.split(":", 1)[1].strip()
    return "CPU, unnamed"


def append(
    cell: Cell, verdict: str, versions: Mapping[str, str], detail: str, path: Path = RESULTS / "cells.jsonl"
) -> Result:
    """Adds one line to `path` in a single write, so that two runners can't mix theirs."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    sources = tree_digest()
    result = Result(cell, verdict, current_commit(), sources, versions, hardware(), today, detail)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, result.line().encode())
    finally:
        os.close(descriptor)
    return result


def latest(folder: Path = RESULTS) -> dict[Cell, Result]:
    """The last result of every cell that was ever run. ValueError names the file and line that can't be read."""
    found: dict[Cell, Result] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                found_cell = Cell.of(row.pop("cell"))
                found[found_cell] = Result(found_cell, **row)
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                raise ValueError(f"{path}:{number} is no result line ({problem})") from problem
    return found
