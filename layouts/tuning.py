"""How conversions are cut on each kind of GPU: tuning.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TABLE = Path(__file__).with_name("tuning.toml")


class Tuning(NamedTuple):
    """What kvl_gpu_call is told of it, and when transfers go by way of a buffer of so many bytes."""

    block_bytes: int
    blocks: int
    piece_bytes: int = 0
    stage_bytes: int = 0
    staging_bytes: int = 0
    run_bytes: int = 0


@cache
def tuning(name: str, multiprocessors: int) -> Tuning:
    """For a GPU of that name and size."""
    table: dict[str, dict[str, int]] = tomllib.loads(_TABLE.read_text("utf-8"))
    row = table["default"] | next((row for known, row in table.items() if name.startswith(known)), {})
    staging = row["piece_bytes"], row["stage_bytes"], row["staging_bytes"], row["run_bytes"]
    return Tuning(row["block_bytes"], row["waves"] * multiprocessors, *staging)
