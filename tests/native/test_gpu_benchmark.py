"""benchmarks/gpu.py without a GPU: nobody can mend it where there is one, so all of it runs here, by the host twin."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import judged
from benchmarks.gpu_tuning import best, least, toml, tuning_row
from benchmarks.gpu_ways import WITHIN
from tests.native import builds

SECTIONS = ["device", "pinned", "host", "profile", "ways", "cuts", "tuned"]
USUAL = tomllib.loads((builds.CLONE / "layouts" / "tuning.toml").read_text())["default"]


def dry(output: Path, *options: str) -> tuple[int, str]:
    if builds.twin() is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    command = [sys.executable, "benchmarks/gpu.py", "--dry", f"--output={output}", *options]
    done = subprocess.run(command, cwd=builds.CLONE, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_section_runs(tmp_path: Path) -> None:
    """And every figure that is promised is there, with its target, in the file."""
    status, said = dry(tmp_path / "figures.json")
    assert status == 0, said
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found["seconds"]) == SECTIONS
    assert not [row for row in found["figures"] if "error" in row]
    promised = {row["name"] for row in found["figures"] if "target" in row and row["section"] != "tuned"}
    wanted = {f"gather: {row} -> canonical" for row in WITHIN} | {f"scatter: canonical -> {row}" for row in WITHIN}
    wanted |= {f"bf16 -> fp8 with scales: {row} -> canonical" for row in ("vllm_lbnhc", "vllm_lbhnc")}
    for blocks in ("3", "8", "3 equal", "8 equal"):
        wanted |= {f"{blocks} blocks -> pinned memory", f"pinned memory -> {blocks} blocks"}
    wanted |= {f"{what} of a chunk" for what in ("launches", "kernel runs", "synchronisations")}
    wanted |= {"host time of a chunk, us", "host time of a chunk behind 100 ms of work, us"}
    assert promised == wanted
    assert {row["grid"] for row in found["figures"] if "grid" in row} == {"size", "piece", "run", "buffer", "cut"}
    assert found["tuning"].keys() == USUAL.keys()
    assert toml("host twin", found["tuning"]) in said


def test_a_section_that_fails_costs_no_other(tmp_path: Path) -> None:
    """Its time being over is a failure, too; what was found until then is kept."""
    status, said = dry(tmp_path / "figures.json", "--seconds=0", "--only=host,device", "--check")
    assert status == 1
    assert "the rest was left out" in said
    rows = json.loads((tmp_path / "figures.json").read_text())["figures"]
    for section in ("host", "device"):
        kinds = [row["kind"] for row in rows if row["section"] == section]
        assert len(kinds) == 2
        assert kinds[-1] == "error"


def test_an_unknown_section(tmp_path: Path) -> None:
    status, said = dry(tmp_path / "figures.json", "--only=devise")
    assert status == 2
    assert "no section devise: there are device, pinned" in said


def measured(grid: str, **ratios: list[float]) -> list[dict[str, Any]]:
    """Ratios of ways at 1, 2, 3... bytes."""
    return [
        {"grid": grid, "bytes": nbytes, "way": way, "ratio": ratio}
        for way, found in ratios.items()
        for nbytes, ratio in enumerate(found, start=1)
    ]


def test_from_where_a_way_is_best() -> None:
    rows = measured("size", staged=[0.5, 0.9, 0.6, 0.9, 0.9], kernels=[0.8, 0.7, 0.7, 0.7, 0.9])
    assert least(rows, "size", "staged") == 4
    assert least(rows, "size", "kernels") == 5  # as good is enough
    rows = measured("size", staged=[0.9, 0.5], kernels=[0.8, 0.7])
    assert least(rows, "size", "staged") is None
    assert least(rows, "size", "pieces") is None


def test_a_cut_must_be_worth_it() -> None:
    assert best(measured("cut", a=[0.90, 0.90], b=[0.90, 0.91]), "cut", "a") == "a"
    assert best(measured("cut", a=[0.90, 0.90], b=[0.95, 0.95]), "cut", "a") == "b"


def test_the_row_for_tuning() -> None:
    assert tuning_row([], USUAL) == USUAL
    rows = measured("size", staged=[0.1], kernels=[0.9]) + measured("piece", pieces=[0.5, 0.9], kernels=[0.6, 0.6])
    rows += measured("run", staged=[0.1, 0.1], kernels=[0.9, 0.9]) + measured("cut", **{"65536 8": [0.9]})
    rows += measured("buffer", **{"buffer of 8388608": [0.9]})
    row = tuning_row(rows, USUAL)
    assert row == {
        "block_bytes": 65536,
        "waves": 8,
        "piece_bytes": 2,
        "stage_bytes": 0,
        "staging_bytes": 8388608,
        "run_bytes": 2,
    }
    assert tomllib.loads(toml("NVIDIA H200", row)) == {"NVIDIA H200": row}


@pytest.mark.parametrize(
    ("row", "met"),
    [
        ({"kind": "rows", "ratio": 0.9}, True),
        ({"kind": "rows", "ratio": 0.89}, False),
        ({"kind": "host us", "median": 15.1}, False),
        ({"kind": "synchronisations", "median": 0.0}, True),
        ({"kind": "kernels", "ratio": 0.1}, None),
        ({"kind": "rows", "ratio": 0.1, "grid": "cut"}, None),
    ],
)
def test_verdicts(row: dict[str, Any], met: bool | None) -> None:
    assert judged(row).get("met") is met
