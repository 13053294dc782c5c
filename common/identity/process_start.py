"""When this process began, by the clock that stamps files."""

import os
import time
from pathlib import Path


def process_start_ns() -> int | None:
    """Wall-clock time in ns at which the kernel made this process, early by up to a tick (10 ms); None where it can't
    be known.

    Age = time since boot minus the start time in /proc/self/stat; a clock that was set meanwhile shifts the result by
    as much.
    """
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])  # field 22; the name before it may hold spaces
        age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux, or no /proc
        return None
    return time.time_ns() - age_ns if age_ns >= 0 else None
