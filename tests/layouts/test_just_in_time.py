"""Kernels that are built on the spot: the text a compiler gets, and the cache. No GPU runs them here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvlingua.layouts import just_in_time
from kvlingua.layouts.hip_python import HipError
from tests.native.builds import CLONE

FILES = [*(CLONE / "csrc").glob("*.h"), *(CLONE / "csrc/cuda").glob("*.h"), CLONE / "csrc/cuda/device_code.cu"]


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    folder.mkdir()
    for file in FILES:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_one_text_without_includes_compiles(kernels: Path, tmp_path: Path) -> None:
    """By clang for a GPU's code alone, with none of HIP's or C++'s headers: compiled, not run."""
    clang = shutil.which("clang++-19")
    if clang is None:
        pytest.skip("there is no clang++-19")
    text = just_in_time.source(kernels)
    assert "#include" not in text
    unit, made = tmp_path / "unit.hip", tmp_path / "unit.s"
    unit.write_text(text)
    options = "-x hip --offload-arch=gfx942 --cuda-device-only -S -nogpulib -nogpuinc -fdeclspec -include".split()
    command = [clang, *options, str(CLONE / "rocm/prelude.h"), *just_in_time.OPTIONS, "-O1", str(unit), "-o", str(made)]
    subprocess.run(command, check=True, timeout=600)
    assert "kvl_built_kernel" in made.read_text()


class Compiler:
    """hiprtc's calls, which note what they are given."""

    def __init__(self, code: bytes = b"\x7fELF kernels", error: int = 0) -> None:
        self.code, self.error = code, error
        self.options: list[list[bytes]] = []

    def hiprtcVersion(self) -> tuple[int, int, int]:
        return 0, 9, 0

    def hiprtcCreateProgram(self, text: bytes, name: bytes, *headers: object) -> tuple[int, object]:
        return 0, object()

    def hiprtcCompileProgram(self, program: object, count: int, options: list[bytes]) -> tuple[int]:
        assert count == len(options)
        self.options.append(options)
        return (self.error,)

    def hiprtcGetCodeSize(self, program: object) -> tuple[int, int]:
        return 0, len(self.code)

    def hiprtcGetCode(self, program: object, code: bytearray) -> tuple[int]:
        code[:] = self.code
        return (0,)

    def hiprtcGetProgramLogSize(self, program: object) -> tuple[int, int]:
        return 0, 32

    def hiprtcGetProgramLog(self, program: object, said: bytearray) -> tuple[int]:
        said[:] = b"note\nunit.hip:3: error: no such\0"
        return (0,)

    def hiprtcDestroyProgram(self, program: Any) -> tuple[int]:
        return (0,)


def test_compiled_once_and_kept(kernels: Path, tmp_path: Path) -> None:
    home, compiler = tmp_path / "home", Compiler()
    for _ in range(2):
        assert just_in_time.code_object("gfx942:xnack-", compiler, kernels, home) == compiler.code
    assert len(compiler.options) == 1
    assert compiler.options[0][0] == b"--offload-arch=gfx942:xnack-"
    assert b"-ffp-contract=off" in compiler.options[0]
    (kept,) = home.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")  # damaged: built again
    assert just_in_time.code_object("gfx942:xnack-", compiler, kernels, home) == compiler.code
    kept.chmod(0o666)  # anybody could have written it
    just_in_time.code_object("gfx942:xnack-", compiler, kernels, home)
    assert len(compiler.options) == 3


def test_what_is_said_of_a_failure(kernels: Path, tmp_path: Path) -> None:
    with pytest.raises(HipError, match=r"unit.hip:3: error: no such"):
        just_in_time.code_object("gfx942", Compiler(error=6), kernels, tmp_path / "home")
    with pytest.raises(HipError, match="isn't an architecture"):
        just_in_time.code_object("../x", Compiler(), kernels, tmp_path / "home")
    assert not (tmp_path / "home").exists()
