"""What the installed library needs and offers, by its own tables."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

LIBRARY = Path(str(resources.files("kvlingua") / "_lib" / "libkvlingua_cpu.so"))
SYSTEM = {"libc", "libm", "libpthread", "libstdc++", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64"}


def table(*options: str) -> list[str]:
    """Lines of what readelf says of the library."""
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf (it comes with binutils, which every g++ brings)")
    done = subprocess.run(["readelf", "--wide", *options, LIBRARY], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_it_needs_nothing_but_the_system() -> None:
    """No torch, no Python, no OpenMP. That nothing else is left undefined is checked when `make check-native` links."""
    needed = [line.partition("[")[2].rstrip("]") for line in table("--dynamic") if "(NEEDED)" in line]
    assert needed
    assert {name.partition(".so")[0] for name in needed} <= SYSTEM
    assert not [line for line in table("--dynamic") if "(RPATH)" in line or "(RUNPATH)" in line]


def test_it_offers_its_interface_and_nothing_else() -> None:
    """What the compiler emits of C++'s own templates is weak, and named by C++."""
    symbols = [line.split() for line in table("--dyn-syms")]
    defined = [
        (words[4], words[7]) for words in symbols if len(words) > 7 and words[0][:-1].isdigit() and words[6] != "UND"
    ]
    offered = {name for bind, name in defined if bind == "GLOBAL"}
    header = (Path(__file__).parents[2] / "csrc" / "kvlingua.h").read_text("utf-8")
    declared = {
        line.partition("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("KVL_API")
    }
    assert offered == declared
    assert all(name.startswith(("_ZNSt", "_ZSt")) for bind, name in defined if bind == "WEAK")
