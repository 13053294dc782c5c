"""What goes wrong on purpose: servers that are killed, objects that are damaged."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kvlingua.adapters.conformance.damage import negate_values
from tests.soak.server import Server, ServerError

HEALTHY_SECONDS = 30.0  # before a server may be killed
CORRUPT_SECONDS = 4.0  # between two damaged objects, on average


class Killer:
    """Kills a server every `interval` seconds, each in turn, once it has been healthy for HEALTHY_SECONDS, and starts
    it again."""

    def __init__(self, servers: Sequence[Server], interval: float) -> None:
        self.kills = 0
        self.failed: list[str] = []
        self._servers = servers
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends when a server that is being started is up."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._interval
            victim = self._servers[self.kills % len(self._servers)]
            if self._stop.wait(max(0.0, victim.healthy_since + HEALTHY_SECONDS - time.monotonic())):
                return
            victim.kill()
            self.kills += 1
            try:
                victim.start()
                victim.wait()
            except ServerError as error:
                self.failed.append(str(error))
                return


class Corrupter:
    """Damages stored objects, drawn at random, in place: a bit, the end, or everything. `unseen`: instead gives V the
    other sign under valid checksums, which nobody can notice but who compares answers."""

    def __init__(self, store: Path, seed: int, unseen: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self._store = store
        self._kinds = ["negated"] if unseen else ["bit", "cut", "garbage"]
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._rng.expovariate(1 / CORRUPT_SECONDS)):
            found = sorted(self._store.glob("*/*.safetensors"))
            if found:
                self._damage(self._rng.choice(found), self._rng.choice(self._kinds))

    def _damage(self, path: Path, kind: str) -> None:
        try:
            if kind == "negated":
                negate_values(path)
                self.counts[kind] += 1
                return
            with path.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if kind == "cut":
                    file.truncate(self._rng.randrange(size))
                elif kind == "garbage":
                    file.write(self._rng.randbytes(size))
                else:
                    where = self._rng.randrange(size)
                    file.seek(where)
                    byte = file.read(1)[0]
                    file.seek(where)
                    file.write(bytes([byte ^ 1 << self._rng.randrange(8)]))
        except FileNotFoundError:  # evicted meanwhile
            return
        self.counts[kind] += 1
