"""A folder that really hangs: a FUSE file system over another folder, whose server can be stopped and continued.

While it is frozen, every system call on the folder blocks in the kernel, as on a network file system whose server is
gone. The process that makes the call can still be killed, and can exit. Needs /dev/fuse and the right to mount (root).

    with hanging_folder(tmp_path) as folder:
        ... use folder.path ...
        folder.freeze()

Single files can be made to fail, too (`spoil`).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

_MNT_DETACH = 2


class HangingFolder:
    """The mounted folder, and the process that serves it."""

    def __init__(self, path: Path, behind: Path, server: "subprocess.Popen[str]") -> None:
        self.path = path
        self._behind = behind
        self._server = server

    def spoil(self, **faults: Mapping[str, int]) -> None:
        """From now on these go wrong with files, by name, as fuse_server.py says."""
        (self._behind / ".faults").write_text(json.dumps(faults))

    def freeze(self) -> None:
        """From now on every call on the folder blocks."""
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """What is blocked goes on, as if nothing had been."""
        self._server.send_signal(signal.SIGCONT)


def why_not() -> str | None:
    """Why no folder can be made to hang on this machine; None if one can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse that can be opened, so no file system that really hangs"
    if os.geteuid() != 0:
        return "mounting a file system that really hangs needs root"
    return None


needs_root = pytest.mark.skipif(why_not() is not None, reason=f"a file system is mounted: {why_not()}")


@contextmanager
def hanging_folder(parent: Path) -> Iterator[HangingFolder]:
    """A private folder `parent`/hanging. Skips the test, and says why, where it can't be mounted."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    mount, behind = parent / "hanging", parent / "behind"
    mount.mkdir(mode=0o700)
    behind.mkdir(mode=0o700)
    server = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("fuse_server.py")), str(mount), str(behind)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        answer = server.stdout.readline().strip()
        if answer != "ready":
            pytest.skip(f"a file system that really hangs can't be mounted here: {answer or 'its server ended'}")
        yield HangingFolder(mount, behind, server)
    finally:
        server.kill()  # whatever is blocked gets an error
        server.wait()
        ctypes.CDLL(None).umount2(os.fsencode(mount), _MNT_DETACH)
