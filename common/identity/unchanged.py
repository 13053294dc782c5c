"""Whether the files that an engine loads may have been others before: what the kernel's times say of a whole path."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import ModelDescription
from kvlingua.common.identity.weight_files import INDEX

BEGAN = "this process began, so which weights it has read can't be proved: restart the engine"
_TOLERANCE_NS = 20_000_000  # a tick of the start time, one of ctime; no process reads weights that soon after it began
_MAX_STEPS = 1000  # of a path, the links on it followed: far more than the kernel would go


def check_unchanged(description: ModelDescription, since_ns: int | None) -> None:
    """`check_paths` of config.json and of the weight files."""
    said = [description.folder / name for name in ("config.json", INDEX)]
    check_paths([*filter(os.path.lexists, said), *description.weight_files.values()], since_ns)


def check_paths(paths: Iterable[Path], since_ns: int | None, event: str = BEGAN) -> None:
    """Raise UnsupportedError unless what these paths lead to is older than `since_ns`, or one can't be followed.

    Every step of the way counts: a link that was changed, or a folder that was renamed, leads to other files. event:
    what happened at `since_ns`, and what to do about a change since.
    """
    if since_ns is None:
        raise UnsupportedError(
            "fingerprint", "when this process began can't be read from /proc: which weights it has is unproved"
        )
    for path in paths:
        for step, facts, folder in _steps(path.absolute()):
            if facts.st_ctime_ns <= since_ns + _TOLERANCE_NS:
                continue
            if not stat.S_ISDIR(facts.st_mode) or _was_renamed(facts, folder):
                raise _changed(step, event)


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result, os.stat_result]]:
    """The folders, links and the file that the kernel passes on its way to `path`: (where, its lstat, lstat of the
    folder it lies in)."""
    way = [(Path("/"), _lstat(Path("/")))]
    ahead = list(reversed(path.parts[1:]))
    for _ in range(_MAX_STEPS):
        if not ahead:
            return
        name = ahead.pop()
        if name == "..":
            del way[max(1, len(way) - 1) :]  # the root is its own parent
            continue
        step = way[-1][0] / name
        facts = _lstat(step)
        yield step, facts, way[-1][1]
        if stat.S_ISLNK(facts.st_mode):
            target = _target(step)
            if target.is_absolute():
                del way[1:]
            ahead += reversed(target.parts[target.is_absolute() :])
        else:
            way.append((step, facts))
    raise UnsupportedError("fingerprint", f"{path} leads through too many links")


def _was_renamed(facts: os.stat_result, folder: os.stat_result) -> bool:
    """Whether a folder whose ctime is new may have got its name then, `folder` being the one it lies in.

    Making or removing a file in it gives it a new mtime with its ctime. Other changes of its own (its mode; an overlay
    file system that copies it) leave the folder around it as it was, which a rename doesn't.
    """
    return facts.st_ctime_ns != facts.st_mtime_ns and folder.st_mtime_ns >= facts.st_ctime_ns - _TOLERANCE_NS


def _changed(path: Path, event: str) -> UnsupportedError:
    return UnsupportedError("weights_changed", f"{path} changed after {event}")


def _lstat(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise UnsupportedError("fingerprint", f"{path} can't be read: {error.strerror}") from None


def _target(link: Path) -> Path:
    try:
        return link.readlink()
    except OSError as error:
        raise UnsupportedError("fingerprint", f"{link} can't be read: {error.strerror}") from None
