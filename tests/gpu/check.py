"""Everything that a GPU has to show, as `make gpu-check` runs it on an offline machine with an NVIDIA GPU.

python -m tests.gpu.check [--parts tests,figures,properties,sanitizer] [--architecture 90] [--wheels FOLDER] [--dry]

Builds the libraries with g++ and nvcc into build/gpu, runs the kernels' tests on the device, benchmarks/gpu.py, the
property tests of layouts on the device and a short set under compute-sanitizer, and writes the GPU's name, driver,
versions, what passed, and figures to matrix/results/gpu-NAME.json. That is rewritten after each part, and each part has
a time limit. Needs torch, numpy, hypothesis and pytest in this Python; nothing is installed. Exits 1 if anything
failed, a figure that missed its target aside: that is in the file. `--dry` does without a GPU what can be done: builds,
collects the tests, measures nothing, and writes build/gpu/dry.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE = Path(__file__).parents[2]
SITE = CLONE / "build" / "gpu"
LIBRARIES = SITE / "kvlingua" / "_lib"
RESULTS = CLONE / "matrix" / "results"
GPU_SOURCES: tuple[str, ...] = ("cuda/gpu.cu", "cuda/large_pieces.cpp", "cuda/launches.cpp", "cuda/parts.cpp")
GPU_SOURCES += ("check.cpp", "message.cpp", "reach.cpp", "runs.cpp", "tables.cpp")
# No configuration of ours: it asks for plugins that such a machine may lack.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={CLONE}", "--import-mode=importlib"]
PYTEST += ["--noconftest", "-p", "no:cacheprovider"]
ON_DEVICE = ["tests/gpu"]
PROPERTIES = ["tests/layouts/test_pairs.py", "tests/layouts/test_pair_casts.py", "tests/layouts/test_pair_strides.py"]
SHORT = ["tests/gpu/test_device.py", "-k", "gather_and_scatter or pinned or compared or fallback"]

Result = dict[str, Any]


def say(what: str) -> None:
    print(f"== {what}", flush=True)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(SITE), str(CLONE)])}


def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        sys.exit("gpu-check: there is no nvcc: put CUDA's bin folder on PATH")
    return found


def build(architecture: str) -> None:
    """The package as links, and both libraries, for this GPU only: a wheel has all architectures."""
    shutil.rmtree(SITE, ignore_errors=True)
    LIBRARIES.mkdir(parents=True)
    for source in (CLONE / "src" / "kvlingua").iterdir():
        (SITE / "kvlingua" / source.name).symlink_to(source.resolve())
    sources = CLONE / "csrc"
    plain = ["-std=c++17", "-O3", "-DNDEBUG", "-shared"]
    cpu: list[str | Path] = [
        "g++",
        *plain,
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-pthread",
        *sources.glob("*.cpp"),
    ]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    device = [nvcc(), *plain, "-fmad=false", target, "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    device += [str(sources / source) for source in GPU_SOURCES]
    made: dict[Path, list[Any]] = {LIBRARIES / "libkvlingua_cpu.so": cpu, LIBRARIES / "libkvlingua_cuda.so": device}
    running = [subprocess.Popen([*command, "-o", library]) for library, command in made.items()]
    statuses = [one.wait() for one in running]
    if any(statuses):
        sys.exit("gpu-check: a library could not be built, for the reason above")


def bring(wheels: Path) -> None:
    """Install wheels beside our package; nothing is downloaded."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={SITE}"]
    subprocess.run([*pip, *sorted(wheels.glob("*.whl"))], check=True)


LIMITS = {"tests": 150, "figures": 240, "properties": 240, "sanitizer": 120}
"""Seconds of each part; of compute-sanitizer, for each of its two tools."""


def run(name: str, command: list[str], seconds: float) -> tuple[int, str]:
    """How it ended, 124 where its time was over, and what it said."""
    say(name)
    with subprocess.Popen(command, env=environment(), cwd=CLONE, stdout=subprocess.PIPE, text=True) as process:
        stop = threading.Timer(seconds, process.kill)
        stop.start()
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
        status = process.wait()
        late = not stop.is_alive()
        stop.cancel()
    return 124 if late else status, "".join(said)


def passed(name: str, command: list[str], seconds: float) -> Result:
    """Run tests; how long they took, how many passed, and the last line."""
    begin = time.monotonic()
    status, said = run(name, command, seconds)
    last = (said.strip().splitlines() or [""])[-1]
    counted = {word: int((re.findall(rf"(\d+) {word}", said) or ["0"])[-1]) for word in ("passed", "skipped")}
    if counted["skipped"] or not counted["passed"]:
        say(f"{name}: {counted['passed']} passed, {counted['skipped']} NOT RUN")
    # Where everything was skipped, pytest is content; we aren't.
    status = status or int(not counted["passed"])
    result = {"name": name, "status": status, "seconds": round(time.monotonic() - begin), "last": last}
    return {**result, "passed": counted["passed"], "not_run": counted["skipped"]}


def check_device() -> None:
    """Property tests run on whatever is there; here it must be the device."""
    script = "from tests.layouts.kernel_sets import has_device; from kvlingua.layouts import gpu\n"
    script += "assert has_device(), gpu.on(0).description"
    if subprocess.run([sys.executable, "-c", script], env=environment(), cwd=CLONE).returncode:
        sys.exit("gpu-check: our kernels can't be run on this GPU, for the reason above; nothing was tested")


def tests() -> list[Result]:
    return [passed("tests on the device", [*PYTEST, *ON_DEVICE], LIMITS["tests"])]


def properties() -> list[Result]:
    return [passed("property tests on the device", [*PYTEST, *PROPERTIES], LIMITS["properties"])]


def sanitizer() -> list[Result]:
    """A short set under compute-sanitizer, which comes with CUDA."""
    beside = Path(nvcc()).resolve().parent / "compute-sanitizer"
    tool = shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)
    if tool is None:
        return [{"name": "compute-sanitizer", "status": None, "last": "not run: there is no compute-sanitizer"}]
    return [
        passed(
            f"compute-sanitizer {kind}",
            [tool, f"--tool={kind}", "--error-exitcode=9", *PYTEST, *SHORT],
            LIMITS["sanitizer"],
        )
        for kind in ("memcheck", "racecheck")
    ]


def figures(*options: str) -> list[Result]:
    """benchmarks/gpu.py, and all that it has written, even if it then failed."""
    path = SITE / "figures.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/gpu.py", f"--output={path}", f"--seconds={LIMITS['figures'] - 30}", *options]
    status, _ = run("benchmarks/gpu.py", command, LIMITS["figures"])
    found = json.loads(path.read_text()) if path.exists() else {"figures": []}
    missed = [row["name"] for row in found["figures"] if row.get("met") is False]
    last = f"{len(found['figures'])} figures, targets missed: {', '.join(missed) or 'none'}"
    say(last)
    return [{"name": "benchmarks/gpu.py", "status": status, "last": last, "found": found}]


PARTS: dict[str, Callable[[], list[Result]]] = {
    "tests": tests,
    "figures": figures,
    "properties": properties,
    "sanitizer": sanitizer,
}
DRY: dict[str, Callable[[], list[Result]]] = {
    "tests": lambda: [collected([*ON_DEVICE, *SHORT])],
    "figures": lambda: figures("--dry"),
    "properties": lambda: [collected(PROPERTIES)],
}


def collected(which: list[str]) -> Result:
    """Whether pytest finds tests there."""
    status, said = run(f"collecting {' '.join(which)}", [*PYTEST, "--collect-only", *which], LIMITS["tests"])
    return {"name": "collected", "status": status, "last": (said.strip().splitlines() or [""])[-1]}


def versions(*, dry: bool) -> dict[str, str]:
    import torch

    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which(asked[0]) else ""
    release = re.search(r"release [^\n]+", subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=CLONE).stdout.strip()
    return {
        "gpu": "none" if dry else torch.cuda.get_device_name(0),
        "driver": driver,
        "nvcc": release[0] if release else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__)
    parser.add_argument("--architecture", help="of the GPU, as 90; torch says it otherwise")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this Python lacks; used for this check only")
    parser.add_argument("--parts", default=",".join(PARTS), help="in order (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="what can be done without a GPU")
    chosen = parser.parse_args()
    parts, known = chosen.parts.split(","), DRY if chosen.dry else PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    try:
        import torch
    except ImportError:
        sys.exit(f"gpu-check: {sys.executable} has no torch; name another Python: make gpu-check PYTHON=...")
    if not chosen.dry and (not torch.cuda.is_available() or torch.version.cuda is None):
        sys.exit("gpu-check: torch finds no NVIDIA GPU here, so nothing was run")
    architecture = chosen.architecture or (
        "90" if chosen.dry else "".join(map(str, torch.cuda.get_device_capability(0)))
    )
    say(f"building for sm_{architecture}")
    build(architecture)
    if chosen.wheels:
        bring(chosen.wheels)
    if not chosen.dry:
        check_device()
    ran: list[Result] = []
    result: Result = {**versions(dry=chosen.dry), "ran": ran, "figures": "not measured"}
    for part in parts:
        for one in known.get(part, list)():
            # Figures stand for themselves.
            found = one.pop("found", None)
            if found is not None:
                result |= {"figures": found["figures"], "tuning": found.get("tuning"), "measured": found.get("seconds")}
            ran.append(one)
        write(result, SITE / "dry.json" if chosen.dry else None)
    sys.exit(1 if any(one["status"] for one in ran) else 0)


def write(result: Result, path: Path | None) -> None:
    """At once whole, or not at all: what was written before isn't lost."""
    if path is None:
        name = re.sub(r"[^a-z0-9]+", "-", str(result["gpu"]).lower()).strip("-")
        path = RESULTS / f"gpu-{name}.json"
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)
    say(f"written: {path.relative_to(CLONE)}")


if __name__ == "__main__":
    main()
