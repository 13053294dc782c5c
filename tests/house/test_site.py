"""`build/site`: a clone as a user would have it, found through PYTHONPATH."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.environment import BuildError
from engines.site import CLONE, KEPT, SOURCES, site, sources_digest

ASK = """
import json, sys
from importlib import metadata, resources
import kvlingua
print(json.dumps({
    "file": kvlingua.__file__,
    "version": metadata.version("kvlingua"),
    "library": (resources.files("kvlingua") / "_lib" / "libkvlingua_cpu.so").is_file(),
    "points": {g: [p.value for p in metadata.entry_points(group=g) if p.name == "kvlingua"]
               for g in ("vllm.general_plugins", "sglang.srt.plugins")},
}))
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of this clone's sources that borrows its tools."""
    copy = tmp_path / "clone"
    for name in SOURCES:
        source = CLONE / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (copy / ".venv" / "bin" / "python").chmod(0o755)
    return copy


def ask(folder: Path) -> dict[str, object]:
    """What a Python without the developer's environment sees of kvlingua through PYTHONPATH alone."""
    done = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-P", "-s", "-c", ASK],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_engines_find_the_clone_and_its_entry_points(clone: Path) -> None:
    folder = site(clone)
    answer = ask(clone / "build" / "site")
    assert answer["file"] == str(clone / "build" / "site" / "kvlingua" / "__init__.py")
    assert answer["library"] is (shutil.which(os.environ.get("CXX", "c++")) is not None)
    assert answer["points"] == {
        "vllm.general_plugins": ["kvlingua.adapters.vllm.plugin:register"],
        "sglang.srt.plugins": ["kvlingua.adapters.sglang.plugin:register"],
    }
    before = (folder / "kvlingua").stat().st_mtime_ns
    assert site(clone) == folder  # nothing changed: nothing installed
    assert (folder / "kvlingua").stat().st_mtime_ns == before

    (clone / "common" / "more.py").write_text("MORE = 1\n")
    changed = site(clone)
    assert changed != folder
    assert (changed / "kvlingua" / "common" / "more.py").is_file()
    assert (clone / "build" / "site").resolve() == changed
    assert folder.is_dir()  # an engine that was started with it runs on

    for count in range(KEPT):
        (clone / "common" / "more.py").write_text(f"MORE = {count}\n")
        older = clone / "build" / f"site-{count:012d}"
        older.mkdir()
        os.utime(older, (count, count))
    assert len([path for path in (clone / "build").glob("site-*") if path.is_dir()]) > KEPT
    site(clone)
    assert len([path for path in (clone / "build").glob("site-*") if path.is_dir()]) == KEPT


@pytest.mark.slow
def test_without_a_compiler_it_installs_pure_python(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("CC", "/nowhere/cc")
    answer = ask(site(clone))
    assert answer["library"] is False
    assert answer["version"] == answer["version"]


@pytest.mark.slow
def test_code_that_does_not_compile_is_not_passed_over(clone: Path) -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler here")
    with (clone / "csrc" / "cpu.cpp").open("a") as file:
        file.write("int broken(\n")
    with pytest.raises(BuildError, match="native library could not be built"):
        site(clone)
    assert not (clone / "build" / "site").exists()


def test_without_setup_it_says_what_to_run(clone: Path) -> None:
    (clone / ".venv" / "bin" / "python").unlink()
    with pytest.raises(BuildError, match="run `make setup` first"):
        site(clone)


def test_the_digest_follows_every_source(clone: Path) -> None:
    seen = {sources_digest(clone)}
    for name in (
        "adapters/new.py",
        "layouts/new.py",
        "csrc/new.h",
        "pyproject.toml",
        "CMakeLists.txt",
        "src/kvlingua/new.py",
    ):
        with (clone / name).open("a") as file:
            file.write("\n")
        seen.add(sources_digest(clone))
    assert len(seen) == 7
    (clone / "common" / "__pycache__").mkdir(exist_ok=True)
    (clone / "common" / "__pycache__" / "left.pyc").touch()
    assert sources_digest(clone) in seen
