"""What is measured all the while: memory and descriptors of each server, and the store's folder."""

import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak.server import Server

SAMPLE_SECONDS = 3.0
# After a start buffers, pools and code are touched for the first time: vLLM's worker rose by 90 MiB in its first three
# minutes under load on a busy machine, ever slower.
WARM_SECONDS = 150.0
SHORTEST_SECONDS = 90.0  # of a life, warm, of which a trend is judged
# A server has a few hundred MiB; the allocator's arenas move by some MiB. What leaks an object of 256 KiB per request
# rises by more than 15 MiB a minute here.
MEMORY_MIB_PER_MINUTE = 4.0
DESCRIPTORS = 8


@dataclass(frozen=True)
class Sample:
    seconds: float  # since it was healthy
    mib: float  # anonymous memory of all its processes (the store's files in the page cache aren't ours)
    descriptors: int


@dataclass(frozen=True)
class Trend:
    """Of one life of a server, warm-up excluded. `mib_per_minute`: Theil and Sen's slope, the median of the slopes of
    all pairs of samples. `descriptors`: by how many the last third's median exceeds the first third's."""

    server: str
    life: int
    seconds: float
    mib: float
    mib_per_minute: float
    descriptors: float

    @property
    def flat(self) -> bool:
        return self.mib_per_minute <= MEMORY_MIB_PER_MINUTE and self.descriptors <= DESCRIPTORS


class Watch:
    """Samples until `stop`. `disk`: the largest sum of the sizes of the store's files. `vanished`: objects that were
    there and then weren't."""

    def __init__(self, servers: Sequence[Server], store: Path) -> None:
        self.disk = 0
        self.vanished = 0
        self.lives: dict[tuple[str, int], list[Sample]] = {}
        self._servers = servers
        self._store = store
        self._there: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._watch, self._watch_disk)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def trends(self) -> list[Trend]:
        """Of the lives that are long enough."""
        found = []
        for (server, life), samples in sorted(self.lives.items()):
            warm = [sample for sample in samples if sample.seconds >= WARM_SECONDS]
            if warm and warm[-1].seconds - warm[0].seconds >= SHORTEST_SECONDS:
                found.append(trend(server, life, warm))
        return found

    def samples(self) -> dict[str, list[tuple[float, ...]]]:
        """[seconds, MiB, descriptors] of each "server, life"."""
        return {
            f"{server}, {life}": [(round(one.seconds), round(one.mib, 1), one.descriptors) for one in samples]
            for (server, life), samples in sorted(self.lives.items())
        }

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for server in self._servers:
                since, life = server.healthy_since, server.starts
                if since:
                    mib, descriptors = held_by(server.processes())
                    sample = Sample(time.monotonic() - since, mib, descriptors)
                    if server.healthy_since == since:  # not killed meanwhile
                        self.lives.setdefault((server.name, life), []).append(sample)

    def _watch_disk(self) -> None:
        while not self._stop.wait(0.5):
            nbytes, there = 0, set()
            for folder, _, names in os.walk(self._store):
                for name in names:
                    try:
                        nbytes += os.stat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:
                        continue
                    if name.endswith(".safetensors"):
                        there.add(name)
            self.disk = max(self.disk, nbytes)
            self.vanished += len(self._there - there)
            self._there = there


def trend(server: str, life: int, samples: Sequence[Sample]) -> Trend:
    """Raises statistics.StatisticsError for fewer than three samples."""
    slopes = [(b.mib - a.mib) / (b.seconds - a.seconds) for i, a in enumerate(samples) for b in samples[i + 1 :]]
    third = len(samples) // 3
    first, last = (statistics.median(s.descriptors for s in part) for part in (samples[:third], samples[-third:]))
    return Trend(
        server,
        life,
        round(samples[-1].seconds - samples[0].seconds, 1),
        round(statistics.median(sample.mib for sample in samples), 1),
        round(60 * statistics.median(slopes), 3),
        last - first,
    )


def held_by(processes: Sequence[int]) -> tuple[float, int]:
    """MiB of anonymous memory, and open descriptors."""
    kib, descriptors = 0, 0
    for process in processes:
        try:
            status = Path(f"/proc/{process}/status").read_text()
            descriptors += len(os.listdir(f"/proc/{process}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    return kib / 1024, descriptors
