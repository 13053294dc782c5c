"""CPU time of a session: a driver's process and all that the engine started, which share its session's number."""

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SESSION, _FIRST, _LAST = 3, 11, 15  # fields of /proc/<pid>/stat behind the name: session; utime, stime, cutime, cstime


def session_cpu_seconds(session: int) -> float:
    """User and system seconds of all processes of that session, and of the children they have waited for."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_SESSION]) == session:
                    ticks += sum(map(int, fields[_FIRST:_LAST]))
    return ticks / _TICKS
