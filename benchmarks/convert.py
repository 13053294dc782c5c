"""How fast layouts are converted, as ratios to plain copies of the same bytes in the same run.

    python benchmarks/convert.py [--check] [--json] [--quick] [--only pages] [--threads 1] [--lmcache-python PATH]

128 MiB of bf16 (4,096 tokens, 8 layers, 8 kv heads x 128, K and V) between engines' pages in random order and canonical
chunks, both memories touched before. In every round memcpy, the fastest streaming copy and the conversion run once;
medians of 15 rounds. Beside them the ways torch alone and LMCache go. What the columns mean and how noise is handled:
docs/benchmarks.md. `--check` exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# Run as a script from the clone: `benchmarks` is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.baselines import Clock, PlainCopies, Ratio, interleaved
from benchmarks.latencies import Latency, latencies
from benchmarks.transfers import Transfer, Transfers
from kvlingua.layouts import native

PEERS = "torch index", "torch naive", "LMCache"
PEER_ROUNDS = 5


@dataclass(frozen=True)
class Target:
    """The least share of memcpy's speed, and of the fastest streaming copy's; or the most microseconds."""

    memcpy: float = 0.0
    stream: float = 0.0
    microseconds: float = 0.0


TARGETS = {
    "pages": Target(memcpy=0.95, stream=0.85),
    "half": Target(memcpy=0.85),
    "slots": Target(memcpy=0.7),
    "tiles": Target(memcpy=0.8),
    "fp8": Target(memcpy=0.8),
    "fp8, no AVX-512": Target(memcpy=0.4),
    "chunk": Target(microseconds=60),
    "plan": Target(microseconds=200),
    # What is shown without a promise: back from fp8, a chunk of single slots.
    "": Target(),
    "chunk of slots": Target(),
}


@dataclass(frozen=True)
class Row:
    """A line of the table. `stream` is None without a C compiler; peers are ratios to memcpy too."""

    name: str
    kind: str
    threads: int
    memcpy: Ratio
    stream: Ratio | None
    peers: dict[str, Ratio]

    @property
    def missed(self) -> str:
        """Which target is missed; empty if none is."""
        target = TARGETS[self.kind]
        if self.memcpy.ratio < target.memcpy:
            return f"{self.memcpy.ratio:.2f} of memcpy instead of {target.memcpy}"
        if target.stream and not self.stream:
            return "no C compiler: the streaming copy was not measured"
        if self.stream and self.stream.ratio < target.stream:
            return f"{self.stream.ratio:.2f} of a streaming copy instead of {target.stream}"
        return ""

    def objects(self) -> Iterator[dict[str, object]]:
        """The row and its peers' rows, for --json."""
        name = self.name if self.threads == 1 else f"{self.name}, {self.threads} threads"
        whole = {"name": name, "kind": self.kind, **vars(self.memcpy)}
        yield whole | ({"of_stream": vars(self.stream)} if self.stream else {}) | {"missed": self.missed}
        for peer, ratio in self.peers.items():
            yield {"name": f"{peer}: {name}", **vars(ratio)}

    def __str__(self) -> str:
        stream = f"{self.stream.ratio:6.2f}" if self.stream else "     -"
        peers = (min((r.ratio for p, r in self.peers.items() if p.startswith(c)), default=None) for c in PEERS)
        cells = "".join(f"{x:8.2f}" if x is not None else "       -" for x in peers)
        spread = f"({self.memcpy.min:.2f} - {self.memcpy.max:.2f})"
        return f"{self.name:52} {self.memcpy.ratio:6.2f} {spread:15} {stream}{cells}{'  MISSED' if self.missed else ''}"


class Measuring:
    """Transfers with one number of threads."""

    def __init__(self, transfers: Transfers, rounds: int, peers: dict[str, Ratio]) -> None:
        self.transfers, self.rounds, self.elsewhere = transfers, rounds, peers
        self.clock = Clock(transfers.threads)
        ends = transfers.target.buffer.pointer, transfers.source.buffer.pointer, transfers.nbytes
        self.plain = PlainCopies(self.clock, *ends, rounds)

    def row(self, transfer: Transfer) -> Row:
        """What misses its target is measured again, in three times as many rounds; only that counts then."""
        self._check(transfer)
        row = self._measure(transfer, self.rounds)
        if row.missed:
            row = self._measure(transfer, 3 * self.rounds)
        return replace(row, peers=self._peers(transfer))

    def _measure(self, transfer: Transfer, rounds: int) -> Row:
        memcpy, stream = self.plain.memcpy, self.plain.stream
        ways = {"memcpy": memcpy, "conversion": transfer.run} | ({"stream": stream} if stream else {})
        times = interleaved(self.clock, ways, rounds)
        of_memcpy = Ratio.of(self.clock, times["memcpy"], times["conversion"])
        of_stream = Ratio.of(self.clock, times["stream"], times["conversion"]) if stream else None
        return Row(transfer.name, transfer.kind, self.clock.threads, of_memcpy, of_stream, {})

    def _peers(self, transfer: Transfer) -> dict[str, Ratio]:
        times = interleaved(self.clock, {"memcpy": self.plain.memcpy, **transfer.peers}, PEER_ROUNDS)
        peers = {name: Ratio.of(self.clock, times["memcpy"], times[name]) for name in transfer.peers}
        return peers | ({"LMCache": self.elsewhere[transfer.name]} if transfer.name in self.elsewhere else {})

    def _check(self, transfer: Transfer) -> None:
        """That every byte is moved, to where all peers move it. Raises RuntimeError."""
        for name, run in {"": transfer.run, **transfer.peers}.items():
            self.transfers.clear()
            if transfer.prepare:
                transfer.prepare()
            run()
            if not name:
                expected = [memory.numbers.clone() for memory in (self.transfers.target, self.transfers.wide)]
                if not transfer.right():
                    raise RuntimeError(f"{transfer.name}: not every byte was copied")
            elif not all(map(torch.equal, (self.transfers.target.numbers, self.transfers.wide.numbers), expected)):
                raise RuntimeError(f"{transfer.name}: {name} gives other bytes than kvlingua")


def lmcache(python: str | None, tokens: int, threads: int) -> dict[str, Ratio]:
    """LMCache's rows, measured by a process of its own. Raises SystemExit if the Python named hasn't got it."""
    if python is None and importlib.util.find_spec("lmcache") is None:
        return {}
    script = Path(__file__).with_name("lmcache_ways.py")
    options = [f"--tokens={tokens}", f"--threads={threads}", f"--rounds={PEER_ROUNDS}"]
    done = subprocess.run([python or sys.executable, script, *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"convert.py: {python or sys.executable} could not measure LMCache (see above)")
    rows = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return {row["name"]: Ratio(row["ratio"], row["median"], row["min"], row["max"]) for row in rows}


def late(latency: Latency) -> str:
    """Which target is missed; empty if none is."""
    took, most = float(str(latency.row()["median"])), TARGETS[latency.kind].microseconds
    return f"{took:.0f} us instead of {most:.0f}" if most and took > most else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--quick", action="store_true", help="32 MiB and 5 rounds: a smoke test, no result")
    parser.add_argument("--only", default="", help="rows whose name contains this, or whose kind it is")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (default: %(default)s)")
    parser.add_argument("--lmcache-python", metavar="PATH", help="Python of an environment with LMCache")
    options = parser.parse_args()
    missed: list[str] = []

    def report(text: str, objects: Iterable[dict[str, object]], wrong: str) -> None:
        for line in map(json.dumps, objects) if options.json else [text]:
            print(line, flush=True)
        if wrong:
            missed.append(f"{text.split('  ')[0]}: {wrong}")

    def wanted(name: str, kind: str) -> bool:
        return options.only in name or options.only == kind

    tokens, rounds = (1024, 5) if options.quick else (4096, 15)
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        transfers = Transfers(tokens, threads)
        measuring = Measuring(transfers, rounds * threads, lmcache(options.lmcache_python, tokens, threads))
        if not options.json:
            print(f"\n{transfers.nbytes >> 20} MiB, threads: {threads}, {native.describe()}")
            print(f"plain copies, memcpy = 1: {measuring.plain.speeds}\n")
            print(f"{'':52} {'memcpy = 1':23}{'stream':>6}{'select':>8}{'naive':>8}{'LMCache':>8}")
        for transfer in transfers:
            if wanted(transfer.name, transfer.kind):
                row = measuring.row(transfer)
                report(str(row), row.objects(), row.missed)
    for latency in latencies(rounds):
        if wanted(latency.name, latency.kind):
            took = latency.row()
            text = f"{latency.name:64} {took['median']:8} us ({took['min']} - {took['max']})"
            report(text, [took | {"missed": late(latency)}], late(latency))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
