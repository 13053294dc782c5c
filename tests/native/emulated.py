"""The native library on CPUs that this machine doesn't have, emulated by qemu: which says nothing about speed."""

from __future__ import annotations

import platform
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvlingua.layouts.native import KERNELS
from tests.native.builds import build, compilers, say

ARM = "aarch64-linux-gnu"
CHECKED = 20_000  # bytes, of which prefixes and runs get checksums


@dataclass(frozen=True)
class Machine:
    """A CPU: what emulates it, and what compiles for it. kernels: all that it has."""

    name: str
    emulator: tuple[str, ...]
    compiler: str
    options: tuple[str, ...]
    needs: tuple[str, ...]
    kernels: tuple[str, ...]
    plans: int


def machines() -> list[Machine]:
    """Arm with the compilers that there are; an older x86-64 where the compiler's own is one."""
    arm = ("qemu-aarch64", "-L", f"/usr/{ARM}")
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    kernels = ("portable", "neon")
    gcc = f"{ARM}-g++"  # clang too takes its libraries
    found = [Machine("aarch64", arm, gcc, system, (gcc,), kernels, 4000)]
    for clang in (compiler.command for compiler in compilers() if compiler.clang):
        target = (*system, f"-DCMAKE_CXX_COMPILER_TARGET={ARM}")
        found.append(Machine("aarch64", arm, clang, target, (clang, gcc), kernels, 1000))
    if platform.machine() == "x86_64":
        old = ("qemu-x86_64", "-cpu", "Nehalem")
        found.append(Machine("x86-64 without AVX", old, "g++", (), ("g++",), ("portable",), 500))
    return found


def check_cpus() -> None:
    """Build for each, run the kernels against plain code. Where a tool is missing, say so and run nothing."""
    for machine in machines():
        missing = [tool for tool in (*machine.needs, machine.emulator[0]) if shutil.which(tool) is None]
        if missing:
            say(f"{machine.name}: SKIPPED, nothing was run: there is no {' and no '.join(missing)}")
            continue
        say(f"{machine.name}: {machine.compiler}, emulated by {machine.emulator[0]}")
        folder = build(f"emulated-{machine.compiler}", machine.compiler, *machine.options)
        check_checksums(machine, folder)
        run(machine, folder, "every_number")
        run(machine, folder, "fuzz_cpu", "--runs", str(machine.plans))
        run(machine, folder, "fuzz_gpu", "--runs", str(machine.plans // 4))


def run(machine: Machine, folder: Path, tool: str, *arguments: str) -> None:
    subprocess.run([*machine.emulator, str(folder / tool), *arguments], check=True, cwd=folder)


def check_checksums(machine: Machine, folder: Path) -> None:
    """All kernels that the machine should have, no others, and the digits of the xxhash package."""
    data = random.Random(7).randbytes(CHECKED)
    (folder / "checked.bin").write_bytes(data)
    command = [*machine.emulator, str(folder / "checksums"), str(folder / "checked.bin")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for kernels, size, digits in map(str.split, lines):
        if digits != xxhash.xxh3_128_hexdigest(data[: int(size)]):
            raise SystemExit(f"check-cpus: kernels {kernels} make {digits} of {size} bytes")
    seen = {int(line.split()[0]) for line in lines}
    if seen != {KERNELS[name] for name in machine.kernels}:
        raise SystemExit(f"check-cpus: kernels {sorted(seen)} ran instead of {machine.kernels}")
    print(f"checksums: {len(lines)} are right, by kernels {sorted(seen)}", flush=True)
