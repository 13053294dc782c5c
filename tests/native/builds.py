"""Builds of the native library for its tests: with sanitizers, with every compiler there is, for another machine."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent
CLONE = SOURCE.parents[1]
FOLDER = CLONE / "build" / "native"
NEWEST_CLANG = 30


class NoTool(Exception):
    """Something that this machine lacks; the message says what to install."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler by its command."""

    command: str

    @property
    def clang(self) -> bool:
        """Whether it is clang, which alone has libFuzzer."""
        return "clang" in self.command

    def asks(self, *arguments: str) -> str:
        """What it answers."""
        done = subprocess.run([self.command, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def runtime(self) -> Path | None:
        """AddressSanitizer's shared library, to be loaded before Python's own; None if it isn't installed."""
        name = f"libclang_rt.asan-{self.asks('-dumpmachine').split('-')[0]}.so" if self.clang else "libasan.so"
        path = Path(self.asks(f"-print-file-name={name}"))
        return path.resolve() if path.is_absolute() and path.exists() else None


def say(what: str) -> None:
    """A line of the proof's own, among those of the tools."""
    print(f"== {what}", flush=True)


def compilers() -> list[Compiler]:
    """g++ and the newest clang, those of them that are here."""
    clangs = ["clang++", *(f"clang++-{version}" for version in range(NEWEST_CLANG, 13, -1))]
    found = [shutil.which("g++"), next(filter(None, map(shutil.which, clangs)), None)]
    return [Compiler(Path(command).name) for command in found if command]


def build(name: str, compiler: str, *options: str, target: str = "all") -> Path:
    """Configure and build into a folder of its own, which is returned; what failed is on standard error."""
    folder = FOLDER / name
    cmake, ninja = (_tool(tool) for tool in ("cmake", "ninja"))
    settings = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options]
    subprocess.run([cmake, "-S", SOURCE, "-B", folder, "-G", "Ninja", *settings], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", folder, "--target", target, "--", "--quiet"], check=True)
    return folder


def library(folder: Path, kind: str = "cpu") -> Path:
    """The library that was built into `folder`: `cpu`, or the host `twin` of that for GPUs."""
    return folder / "kvlingua" / f"libkvlingua_{kind}.so"


@cache
def twin() -> Path | None:
    """The host twin, built when tests first ask for it; None where there is no compiler."""
    found = compilers()
    if not found:
        return None
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "twin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes run tests
        return library(build("twin", found[0].command, target="twin"), "twin")


def _tool(name: str) -> str:
    # `make setup` installs both beside this Python.
    import sys

    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise NoTool(f"there is no {name}: run `make setup`")
    return found
