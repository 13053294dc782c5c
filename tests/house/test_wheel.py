"""A wheel holds the kernels for CPUs and, where their compilers are, those for GPUs; it works where there is no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.native.builds import CLONE

# Two compilers of GPUs take minutes where the machine is busy.
pytestmark = pytest.mark.timeout(1800)
COMPILERS = {"cpu": "g++", "cuda": "nvcc", "hip": "hipcc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline, for one architecture of each kind of GPU: `make check-kernels` compiles all of them."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("wheel")
    settings = {"build-dir": str(folder / "cmake"), "cmake.define.KVLINGUA_CUDA_ARCHITECTURES": "90"}
    settings["cmake.define.KVLINGUA_HIP_ARCHITECTURES"] = "gfx90a"
    options = [f"--config-settings={key}={value}" for key, value in settings.items()]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja
    command = [*pip, *options, f"--wheel-dir={folder}", str(CLONE)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": beside})
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_a_library_for_each_compiler(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        held = {name for name in files.namelist() if name.endswith(".so")}
    there = {kind for kind, compiler in COMPILERS.items() if shutil.which(compiler)}
    assert held == {f"kvlingua/_lib/libkvlingua_{kind}.so" for kind in there}


# An editable installation's finder would come before PYTHONPATH.
DOCTOR = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
import kvlingua
print(kvlingua.__file__)
from kvlingua.common.cli import main
sys.argv = ["kvlingua", "doctor"]
main()
"""


def test_its_doctor_names_them(wheel: Path, tmp_path: Path) -> None:
    """Those for GPUs load without a driver, and say that there is no device; what they need is never linked in."""
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout.startswith(str(tmp_path)), f"another kvlingua was asked: {done.stdout}{done.stderr}"
    (said,) = (line for line in done.stdout.splitlines() if line.strip().startswith("kernels for GPUs:"))
    for kind in ("cuda", "hip"):
        if shutil.which(COMPILERS[kind]):
            assert f"libkvlingua_{kind}.so" in said
            assert f"libkvlingua_{kind}.so doesn't load" not in said
