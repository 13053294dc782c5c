"""A session: a driver's or a server's process and all that the engine started, which share its session's number."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STATE, _SESSION, _FIRST, _LAST = 0, 3, 11, 15  # of /proc/<pid>/stat behind the name; utime, stime, cutime, cstime


def session_cpu_seconds(session: int) -> float:
    """User and system seconds of all processes of that session, and of the children they have waited for."""
    return sum(sum(map(int, fields[_FIRST:_LAST])) for _, fields in _members(session)) / _TICKS


def session_of(session: int) -> list[int]:
    """The processes of that session which have not ended."""
    return [process for process, fields in _members(session) if fields[_STATE] not in ("Z", "X")]


def _members(session: int) -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_SESSION]) == session:
                    yield int(folder.name), fields
