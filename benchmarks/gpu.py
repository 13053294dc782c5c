"""How fast a GPU's memory is converted, as ratios to plain copies of the same bytes in the same run.

    python benchmarks/gpu.py [--only device,pinned] [--output FILE] [--seconds 420] [--check] [--dry]

bf16, 32 layers, 8 kv heads x 128, engines' pages of 16 tokens in random order, on the default stream and on one of its
own. Gather and scatter of 1 GiB count against a copy within the device's memory, transfers of 7 and of 1,000 blocks
against a plain pinned copy; casts count the bytes that they read and write. In every round the plain copy and the
conversion run once, timed by events on one stream that is kept busy before, so that the calling thread's time isn't
counted: what that takes for a chunk is a figure of its own, as are launches and synchronisations by torch's profiler.
Ratios are of medians; beside them stand the least and the greatest of single rounds.

Then all ways of reaching pinned memory are measured over sizes and shapes, and other cuts of the work; from that comes
a row for layouts/tuning.toml, with which the targets are measured once more. FILE is rewritten after each section,
whose errors cost that section only. About three minutes were planned for; what doesn't fit into --seconds is left out,
and says so. `--check` exits 1 if a target is missed. `--dry` goes through all of it without a GPU, at a small size,
with the kernels' host twin; its figures mean nothing. Without a GPU it says so and exits 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Run as a script from the clone: `benchmarks` is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.baselines import Run
from benchmarks.gpu_machine import Machine, NothingHere, machine
from benchmarks.gpu_tuning import DRY, Scale, cuts, host_ways, toml, tuning_row, with_row
from benchmarks.gpu_ways import (
    CHUNK,
    KERNELS,
    PAGE,
    PIECES,
    STAGED,
    conversion,
    of_blocks,
    of_equal_blocks,
    view,
    within_the_device,
)
from kvlingua.layouts import tuning

Row = dict[str, Any]
TARGETS = {"rows": 0.90, "transposed": 0.75, "fp8": 0.80, "pinned": 0.95}
"""The least ratio; of the single ways of reaching pinned memory none is promised."""
MOST = {"host us": 15.0, "launches": 1.0, "kernel runs": 1.0, "synchronisations": 0.0, "host us, busy": 5000.0}
"""The most; of one conversion of a chunk. Behind 100 ms of other work a call that waits would take those."""
CHOSEN: dict[str, tuple[str, dict[str, int]]] = {"": ("pinned", {})}
SINGLE = {"kernels": ("kernels", KERNELS), "staged": ("staged", STAGED)}


class Benchmark:
    """The sections, and what they have found so far."""

    def __init__(self, machine: Machine, scale: Scale) -> None:
        self.machine, self.scale = machine, scale
        self.rows: list[Row] = []
        self.usual: Mapping[str, int] = tomllib.loads(Path(tuning.__file__).with_suffix(".toml").read_text())["default"]

    @property
    def sections(self) -> dict[str, Callable[[], Iterator[Row]]]:
        return {
            "device": lambda: self.device({}),
            "pinned": lambda: self.pinned({}, single=True),
            "host": self.host,
            "profile": self.profile,
            "ways": self.ways,
            "cuts": lambda: cuts(self.machine, self.scale),
            "tuned": self.tuned,
        }

    @property
    def row(self) -> dict[str, int]:
        """For tuning.toml, from what was measured so far."""
        return tuning_row([row for row in self.rows if "grid" in row], self.usual)

    def device(self, row: Mapping[str, int]) -> Iterator[Row]:
        """Within the device's memory."""
        for name, stream in self.machine.streams():
            with stream:
                for way in within_the_device(self.machine, self.scale.model, self.scale.tokens):
                    tuned = with_row(way, row) if row else way
                    yield tuned.measure(self.machine, self.scale.rounds) | {"stream": name}

    def pinned(self, row: Mapping[str, int], *, single: bool) -> Iterator[Row]:
        """To pinned memory and back, by the way that the tuning chooses and by each."""
        for name, stream in self.machine.streams():
            with stream:
                for blocks in self.scale.blocks:
                    shape, equal = of_blocks(self.scale.model, blocks), of_equal_blocks(self.scale.model, blocks)
                    ways = [shape.ways(self.machine, CHOSEN | (SINGLE if single else {}))]
                    if single:
                        ways.append(equal.ways(self.machine, CHOSEN | SINGLE | {"pieces": ("pieces", PIECES)}))
                    for way in (way for some in ways for way in some):
                        tuned = with_row(way, row) if row else way
                        yield tuned.measure(self.machine, self.scale.rounds) | {"stream": name}

    def ways(self) -> Iterator[Row]:
        """Every way of reaching pinned memory, on the stream that takes one call for many copies."""
        *_, (_, stream) = self.machine.streams()
        with stream:
            yield from host_ways(self.machine, self.scale)

    def tuned(self) -> Iterator[Row]:
        """The same, with the row that was found."""
        for found in (self.device(self.row), self.pinned(self.row, single=False)):
            for row in found:
                yield row | {"name": f"{row['name']}, tuned"}

    def host(self) -> Iterator[Row]:
        """What a chunk of 64 tokens costs the calling thread, its views made before or for this one."""
        model = self.scale.model.whole
        nbytes = model.block_bytes(model.full, CHUNK)
        one, two = (self.machine.buffer(self.machine.memory(nbytes)) for _ in range(2))

        def views() -> Run:
            return conversion(view("vllm_lbnhc", model, CHUNK, one, PAGE), view("canonical", model, CHUNK, two, CHUNK))

        run = views()
        for name, kind, call in (("of a chunk", "host us", run), ("of a chunk and its views", "", lambda: views()())):
            times = []
            for _ in range(20 * self.scale.rounds):
                self.machine.wait()  # so that no call waits for room in the device's queue
                begin = time.perf_counter()
                call()
                times.append((time.perf_counter() - begin) * 1e6)
            yield figure(f"host time {name}, us", kind, statistics.median(times), min(times), max(times))

    def profile(self) -> Iterator[Row]:
        """Launches and synchronisations of a chunk's conversion. The control: what our library waits for is seen."""
        model, count = self.scale.model.whole, 20
        nbytes = model.block_bytes(model.full, CHUNK)
        one, two = (self.machine.buffer(self.machine.memory(nbytes)) for _ in range(2))
        engine, stored = view("vllm_lbnhc", model, CHUNK, one, PAGE), view("canonical", model, CHUNK, two, CHUNK)
        run = conversion(engine, stored)
        run()
        idle, busy, waiting = (
            calls(self.machine, work, count) for work in (lambda: None, run, self.machine.wait_by_the_library)
        )
        parts = ("launches", "LaunchKernel"), ("kernel runs", "convert_kernel"), ("synchronisations", "ynchronize")
        for kind, part in parts:
            each = (busy(part) - idle(part)) / count
            yield figure(f"{kind} of a chunk", kind, each, each, each)
        times = []
        for _ in range(5):
            self.machine.wait()
            self.machine.keep_busy(100)
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e6)
        name = "host time of a chunk behind 100 ms of work, us"
        yield figure(name, "host us, busy", statistics.median(times), min(times), max(times))
        if waiting("ynchronize") - idle("ynchronize") < count and not self.machine.dry:
            raise RuntimeError("the profiler doesn't see what our library waits for: its zero shows nothing")


def calls(machine: Machine, run: Run, count: int) -> Callable[[str], int]:
    """How often a part of a name is in those that the profiler saw while `run` ran so often."""
    machine.wait()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            run()
    seen = {event.key: event.count for event in profiler.key_averages()}
    return lambda part: sum(n for key, n in seen.items() if part in key)


def figure(name: str, kind: str, median: float, least: float, most: float) -> Row:
    return {"name": name, "kind": kind, "median": round(median, 2), "min": round(least, 2), "max": round(most, 2)}


def judged(row: Row) -> Row:
    """With the target of its kind, and whether it is met."""
    kind = row["kind"]
    if "grid" in row:
        return row
    if kind in TARGETS:
        return row | {"target": f">= {TARGETS[kind]}", "met": row["ratio"] >= TARGETS[kind]}
    if kind in MOST:
        return row | {"target": f"<= {MOST[kind]}", "met": row["median"] <= MOST[kind]}
    return row


def shown(row: Row) -> str:
    """A row as a line: ratio or count, spread, target, verdict."""
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    spread = f"{row.get('ratio', row['median']):>9} ({row['min']} - {row['max']})"
    rate = f"of {row['plain_gb_s']} GB/s" if "plain_gb_s" in row else ""
    way = row["way"] if row.get("grid") == "cut" else ""
    verdict = f"target {row['target']}: {'met' if row['met'] else 'MISSED'}" if "target" in row else ""
    return f"{row['name']:58} {row.get('stream', ''):8}{spread:28} {rate:16} {way}{verdict}".rstrip()


def write(path: Path | None, result: Mapping[str, object]) -> None:
    if path:
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(beside, path)


def measure(benchmark: Benchmark, names: list[str], seconds: float, path: Path | None) -> Row:
    """Run the sections, each on its own risk, and write what there is after each; all of it is returned."""
    begin = time.monotonic()
    result: Row = {
        "gpu": benchmark.machine.name,
        "kernels": benchmark.machine.description,
        "torch": torch.__version__,
        "dry": benchmark.machine.dry,
        "seconds": {},
        "figures": benchmark.rows,
    }
    for name in names:
        print(f"-- {name}", flush=True)
        started = time.monotonic()
        try:
            for row in benchmark.sections[name]():
                benchmark.rows.append(judged(row) | {"section": name})
                print(shown(benchmark.rows[-1]), flush=True)
                if time.monotonic() - begin > seconds:
                    raise TimeoutError(f"the rest was left out, as {seconds:.0f} s were over")
        except Exception as error:  # noqa: BLE001 -- no section may cost the others' figures
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            benchmark.rows.append({"section": name, "name": name, "kind": "error", "error": said, "met": False})
            print(shown(benchmark.rows[-1]), flush=True)
        result["seconds"][name] = round(time.monotonic() - started, 1)
        result["tuning"] = benchmark.row
        write(path, result)
    print(f"\nfor layouts/tuning.toml:\n{toml(benchmark.machine.name, benchmark.row)}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sections, as device,pinned,host,profile,ways,cuts,tuned")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures and the row for tuning.toml")
    parser.add_argument("--seconds", type=float, default=420, help="when to leave out the rest (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed, or a section failed")
    parser.add_argument("--dry", action="store_true", help="without a GPU, at a small size: does every line run?")
    options = parser.parse_args()
    try:
        with machine(dry=options.dry) as here:
            print(f"{here.name}, {here.description}", file=sys.stderr)
            benchmark = Benchmark(here, DRY if options.dry else Scale())
            names = options.only.split(",") if options.only else list(benchmark.sections)
            unknown = set(names) - set(benchmark.sections)
            if unknown:
                parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(benchmark.sections)}")
            result = measure(benchmark, names, options.seconds, options.output)
    except NothingHere as reason:
        print(f"gpu.py: nothing was measured: {reason}", file=sys.stderr)
        return 1
    missed = [row["name"] for row in result["figures"] if row.get("met") is False]
    if not options.dry:
        print(f"{len(result['figures'])} figures; targets missed: {', '.join(missed) or 'none'}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
