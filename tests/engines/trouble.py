"""Stores in trouble, for tests of every engine: contexts that take a path that isn't there yet, and give the store's.

Root may write anywhere, so that what can't be written, or is full, is a file system of its own, in memory.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hanging import hanging_folder, why_not

needs_root = pytest.mark.skipif(why_not() is not None, reason=f"a file system is mounted: {why_not()}")


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    with mounted(folder, "ro"):
        yield folder


@contextmanager
def full(folder: Path) -> Iterator[Path]:
    """There is room for one object, at most."""
    with mounted(folder, "size=64k"):
        yield folder


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory, which takes root."""
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def no_folder(folder: Path) -> Iterator[Path]:
    folder.write_text("a file stands where the folder should be")
    yield folder


@contextmanager
def hanging(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    with hanging_folder(folder) as frozen:
        frozen.freeze()
        yield frozen.path / "store"
