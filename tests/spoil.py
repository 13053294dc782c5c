"""Damage to a store on disk, as tests of the cache and of real engines need it. Each says how many objects it spoiled.

`store_root` is the folder of a file:// store, or the file of one object.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path


def objects(store_root: Path) -> list[Path]:
    """The files of all stored objects, sorted by path."""
    if store_root.is_file():
        return [store_root]
    return sorted(store_root.glob("*/*.safetensors"))


def flip_byte(store_root: Path, where: float = 0.9) -> int:
    """Flip one bit of every object, at `where` of its length (0.9: within the data of V). Number of objects."""

    def flip(data: bytearray) -> None:
        data[int(where * (len(data) - 1))] ^= 0x10

    return _change(store_root, flip)


def truncate(store_root: Path, keep: float = 0.5) -> int:
    """Cut every object to a part of its length. Number of objects."""

    def cut(data: bytearray) -> None:
        del data[int(keep * len(data)) :]

    return _change(store_root, cut)


def garbage(store_root: Path) -> int:
    """Replace every object's bytes by as many others. Number of objects."""

    def replace(data: bytearray) -> None:
        data[:] = os.urandom(len(data))

    return _change(store_root, replace)


def negate_v(store_root: Path, layers: Collection[int] | None = None) -> int:
    """`negate_values` for every object. Number of objects."""
    # Here, because that package needs pytest, which engines' environments don't have.
    from kvlingua.adapters.conformance.damage import negate_values

    found = objects(store_root)
    for path in found:
        negate_values(path, layers)
    return len(found)


def swap(store_root: Path) -> int:
    """Give every object the name of another one. Number of objects."""
    found = objects(store_root)
    contents = [path.read_bytes() for path in found]
    for path, data in zip(found, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)
    return len(found)


def remove(store_root: Path) -> int:
    """Delete every object. Number of objects."""
    found = objects(store_root)
    for path in found:
        path.unlink()
    return len(found)


def _change(store_root: Path, change: Callable[[bytearray], None]) -> int:
    found = objects(store_root)
    for path in found:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
    return len(found)
