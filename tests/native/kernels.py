"""The kernels for GPUs, compiled for every architecture (`make check-kernels`); what they need: `make kernels-report`.

python -m tests.native.kernels [--report]

Compiled, not run: nothing here says that a kernel works (its host twin does) or how fast it is. An architecture that no
compiler here knows is named. `pip install ziglang` brings a clang that knows more of AMD's than Debian's. Exits 1 if a
kernel doesn't compile, or spills registers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.native.builds import CLONE, NEWEST_CLANG

SOURCE = CLONE / "csrc" / "cuda"
CUDA = ("80", "86", "89", "90", "100", "120")
HIP = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
KERNELS = {"cuda": 2, "hip": 1}
"""For short and for long tables; HIP's take no long argument."""
OPTIONS = ("-std=c++17", "-O3")
EXACT = ("-ffp-contract=off", "-fhip-fp32-correctly-rounded-divide-sqrt", "-fno-gpu-flush-denormals-to-zero")
CLANG = ("-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpulib", "-nogpuinc", "-fdeclspec")
PRELUDE = ("-DKVL_PRELUDE", "-include", str(CLONE / "rocm" / "prelude.h"), "-mcode-object-version=5")


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes of a thread and of a grid block. words: of its argument. spilled: bytes."""

    architecture: str
    compiler: str
    words: int
    registers: int
    spilled: int
    stack: int
    shared: int


def nvcc(architecture: str, command: str, output: Path) -> str:
    """Compile the whole library's device code for an NVIDIA GPU; what the assembler says."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = (*OPTIONS, "-fmad=false", "--resource-usage", target, "-cubin", "-o", output)
    return _run([command, *options, SOURCE / "gpu.cu"])


def hipcc(architecture: str, command: str, output: Path) -> str:
    """Compile the whole library's device code for an AMD GPU with HIP's own headers."""
    options = (*OPTIONS, *EXACT, "-x", "hip", f"--offload-arch={architecture}", "--offload-device-only")
    return _run(["env", "HIP_PLATFORM=amd", command, *options, _REMARKS, "-c", SOURCE / "gpu.cu", "-o", output])


def clang(architecture: str, command: str, output: Path, *more: str | Path) -> str:
    """Compile the kernels for an AMD GPU without any part of ROCm; to assembly, as linking takes a linker for it."""
    options = (*OPTIONS, *EXACT, *CLANG, *PRELUDE, f"--offload-arch={architecture}", "-S", *more)
    return _run([*command.split(), *options, _REMARKS, SOURCE / "device_code.cu", "-o", output])


def ziglang() -> Path | None:
    """The folder of the Python package `ziglang`, if it is installed: it brings a clang newer than most systems'."""
    found = importlib.util.find_spec("ziglang")
    return Path(found.origin).parent if found and found.origin else None


def zig(architecture: str, command: str, output: Path) -> str:
    """As `clang`, by zig's."""
    folder = ziglang()
    assert folder is not None
    return clang(architecture, f"{sys.executable} -m {command}", output, "-resource-dir", folder / "lib")


_UNKNOWN = r"invalid target ID|[Uu]nsupported (HIP )?gpu architecture|cannot find ROCm device library for"
_REMARKS = "-Rpass-analysis=kernel-resource-usage"


class Unknown(Exception):
    """A compiler doesn't know an architecture."""


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if re.search(_UNKNOWN, done.stderr):
        raise Unknown
    if done.returncode:
        sys.exit(f"check-kernels: {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout + done.stderr


def of_nvcc(architecture: str, compiler: str, said: str) -> Iterator[Kernel]:
    pattern = r"convert_kernelILj(\d+)E.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
    pattern += r".*?Used (\d+) registers.*?(\d+) bytes smem"
    for words, stack, spilled, registers, shared in re.findall(pattern, said, re.DOTALL):
        yield Kernel(f"sm_{architecture}", compiler, *map(int, (words, registers, spilled, stack, shared)))


def of_clang(architecture: str, compiler: str, said: str) -> Iterator[Kernel]:
    for part in said.split("Function Name: ")[1:]:
        words = re.search(r"convert_kernelILj(\d+)E", part)
        numbers = dict(re.findall(r"remark:\s+([A-Za-z ]+?)(?: \[[^\]]*\])?: (\d+)", part))
        if words:
            taken = [numbers[name] for name in ("VGPRs", "VGPRs Spill", "ScratchSize", "LDS Size")]
            yield Kernel(architecture, compiler, *map(int, (words[1], *taken)))


Compile = Callable[[str, str, Path], str]
Read = Callable[[str, str, str], Iterator[Kernel]]


def compilers() -> dict[str, list[tuple[str, Compile, Read]]]:
    """For each platform those that are here, best first."""
    clangs = [f"clang++-{version}" for version in range(NEWEST_CLANG, 17, -1)]
    newest = next(filter(shutil.which, clangs), None)
    found: dict[str, list[tuple[str, Compile, Read]]] = {"cuda": [], "hip": []}
    if shutil.which("nvcc"):
        found["cuda"].append(("nvcc", nvcc, of_nvcc))
    if shutil.which("hipcc"):
        found["hip"].append(("hipcc", hipcc, of_clang))
    if newest:
        found["hip"].append((newest, clang, of_clang))
    if ziglang():
        found["hip"].append(("ziglang clang", zig, of_clang))
    return found


def compiled(platform: str, architecture: str) -> list[Kernel]:
    """The kernels for an architecture by the first compiler that knows it; none if none does."""
    for command, compile_for, read in compilers()[platform]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = compile_for(architecture, command, Path(folder) / "kernels")
            except Unknown:
                continue
        kernels = list(read(architecture, command, said))
        wanted = KERNELS[platform]
        if len({kernel.words for kernel in kernels}) != wanted:
            sys.exit(f"check-kernels: {command} compiled {architecture} but named not {wanted} kernels:\n{said}")
        return kernels
    return []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.native.kernels", description=__doc__)
    parser.add_argument("--report", action="store_true", help="registers, spills, stack and shared memory of each")
    report = parser.parse_args().report
    if report:
        print(
            f"{'architecture':13}{'compiler':15}{'argument':>9}{'registers':>11}{'spilled':>9}{'stack':>7}{'shared':>8}"
        )
    wrong = []
    targets = [("cuda", architecture) for architecture in CUDA] + [("hip", architecture) for architecture in HIP]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (platform, architecture), kernels in zip(
            targets, pool.map(lambda target: compiled(*target), targets), strict=True
        ):
            wrong += [kernel for kernel in kernels if kernel.spilled or kernel.stack]
            if not kernels:
                advice = "" if platform == "cuda" or ziglang() else "; the one of `pip install ziglang`, 100 MB, may"
                print(f"{architecture}: SKIPPED, no compiler here knows it{advice}")
            elif not report:
                print(f"{kernels[0].architecture}: compiled by {kernels[0].compiler}, not run")
            for one in kernels if report else ():
                numbers = f"{8 * one.words:9}{one.registers:11}{one.spilled:9}{one.stack:7}{one.shared:8}"
                print(f"{one.architecture:13}{one.compiler:15}{numbers}")
    for one in wrong:
        print(f"check-kernels: {one} spills registers", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
