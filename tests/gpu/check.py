"""Everything that a GPU has to show, as `make gpu-check` runs it on an offline machine with an NVIDIA GPU.

python -m tests.gpu.check [--architecture 90] [--wheels FOLDER]

Builds the libraries with g++ and nvcc into build/gpu, runs the kernels' tests and the property tests of layouts on the
device, a short set under compute-sanitizer, then benchmarks/gpu.py, and writes matrix/results/gpu-NAME.json: the GPU's
name, driver, versions, what passed, figures. Needs torch, numpy, hypothesis and pytest in this Python; nothing is
installed. Exits 1 if anything failed, a figure that missed its target aside: that is in the file.
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
import time
from pathlib import Path

CLONE = Path(__file__).parents[2]
SITE = CLONE / "build" / "gpu"
LIBRARIES = SITE / "kvlingua" / "_lib"
RESULTS = CLONE / "matrix" / "results"
GPU_SOURCES = ("cuda/gpu.cu", "cuda/large_pieces.cpp", "cuda/launches.cpp", "cuda/parts.cpp")
GPU_SOURCES += ("check.cpp", "message.cpp", "reach.cpp", "runs.cpp", "tables.cpp")
# No configuration of ours: it asks for plugins that such a machine may lack.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={CLONE}", "--import-mode=importlib"]
PYTEST += ["--noconftest", "-p", "no:cacheprovider"]
ON_DEVICE = ["tests/gpu"]
PROPERTIES = ["tests/layouts/test_pairs.py", "tests/layouts/test_pair_casts.py", "tests/layouts/test_pair_strides.py"]
SHORT = ["tests/gpu/test_device.py", "-k", "gather_and_scatter or pinned or compared or fallback"]


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
    cpu = ["g++", *plain, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", *sources.glob("*.cpp")]
    subprocess.run([*cpu, "-o", LIBRARIES / "libkvlingua_cpu.so"], check=True)
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    gpu = [nvcc(), *plain, "-fmad=false", target, "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    gpu += [str(sources / source) for source in GPU_SOURCES]
    subprocess.run([*gpu, "-o", LIBRARIES / "libkvlingua_cuda.so"], check=True)


def bring(wheels: Path) -> None:
    """Install wheels beside our package; nothing is downloaded."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={SITE}"]
    subprocess.run([*pip, *sorted(wheels.glob("*.whl"))], check=True)


def passed(name: str, command: list[str]) -> dict[str, object]:
    """Run it; how long it took and its last line."""
    say(name)
    begin = time.monotonic()
    done = subprocess.run(command, env=environment(), cwd=CLONE, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counted = {word: int((re.findall(rf"(\d+) {word}", done.stdout) or ["0"])[-1]) for word in ("passed", "skipped")}
    if counted["skipped"] or not counted["passed"]:
        say(f"{name}: {counted['passed']} passed, {counted['skipped']} NOT RUN")
    # Where everything was skipped, pytest is content; we aren't.
    status = done.returncode or int(not counted["passed"])
    result = {"name": name, "status": status, "seconds": round(time.monotonic() - begin), "last": last}
    return {**result, "passed": counted["passed"], "not_run": counted["skipped"]}


def check_device() -> None:
    """Property tests run on whatever is there; here it must be the device."""
    script = "from tests.layouts.kernel_sets import has_device; from kvlingua.layouts import gpu\n"
    script += "assert has_device(), gpu.on(0).description"
    if subprocess.run([sys.executable, "-c", script], env=environment(), cwd=CLONE).returncode:
        sys.exit("gpu-check: our kernels can't be run on this GPU, for the reason above; nothing was tested")


def sanitized() -> dict[str, object]:
    """A short set under compute-sanitizer, which comes with CUDA."""
    beside = Path(nvcc()).resolve().parent / "compute-sanitizer"
    tool = shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)
    if tool is None:
        return {"name": "compute-sanitizer", "status": None, "last": "not run: there is no compute-sanitizer"}
    memory = [tool, "--tool=memcheck", "--error-exitcode=9", *PYTEST, *SHORT]
    result = passed("compute-sanitizer memcheck", memory)
    races = passed("compute-sanitizer racecheck", [tool, "--tool=racecheck", "--error-exitcode=9", *PYTEST, *SHORT])
    return result if result["status"] else races


def figures() -> tuple[list[dict[str, object]], int]:
    """What was measured, even if it then failed, and how it ended."""
    say("benchmarks/gpu.py")
    command = [sys.executable, "benchmarks/gpu.py", "--json"]
    done = subprocess.run(command, env=environment(), cwd=CLONE, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    return [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")], done.returncode


def versions() -> dict[str, str]:
    import torch

    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True).stdout.strip() if shutil.which(asked[0]) else ""
    release = re.search(r"release [^\n]+", subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=CLONE).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(0),
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
    chosen = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit(f"gpu-check: {sys.executable} has no torch; name another Python: make gpu-check PYTHON=...")
    if not torch.cuda.is_available() or torch.version.cuda is None:
        sys.exit("gpu-check: torch finds no NVIDIA GPU here, so nothing was run")
    architecture = chosen.architecture or "".join(map(str, torch.cuda.get_device_capability(0)))
    say(f"building for sm_{architecture}")
    build(architecture)
    if chosen.wheels:
        bring(chosen.wheels)
    check_device()
    ran = [passed("tests on the device", [*PYTEST, *ON_DEVICE])]
    ran.append(passed("property tests on the device", [*PYTEST, *PROPERTIES]))
    ran.append(sanitized())
    result: dict[str, object] = {**versions(), "ran": ran, "figures": "not measured"}
    write(result)  # a benchmark that ends in an error, or never, must not cost this
    rows, status = figures()
    ran.append({"name": "benchmarks/gpu.py", "status": status, "last": f"{len(rows)} figures"})
    result["figures"] = rows
    write(result)
    sys.exit(1 if any(one["status"] for one in ran) else 0)


def write(result: dict[str, object]) -> None:
    name = re.sub(r"[^a-z0-9]+", "-", str(result["gpu"]).lower()).strip("-")
    path = RESULTS / f"gpu-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {path.relative_to(CLONE)}")


if __name__ == "__main__":
    main()
