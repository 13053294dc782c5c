"""One holder at a time, even if the file goes, and nobody waits for ever."""

import os
import threading
import time
from pathlib import Path

import pytest

from kvlingua.common.errors import StoreTimeout
from kvlingua.common.file_lock import locked


class Holder:
    """A thread that holds the lock until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self.has, self.let_go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(path,))
        self._thread.start()

    def _hold(self, path: Path) -> None:
        with locked(path, 30):
            self.has.set()
            self.let_go.wait(30)

    def end(self) -> None:
        self.let_go.set()
        self._thread.join(30)


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first = Holder(tmp_path / "lock")
    assert first.has.wait(10)
    with pytest.raises(StoreTimeout, match="stopped"), locked(tmp_path / "lock", 0.1):
        pass
    second = Holder(tmp_path / "lock")
    assert not second.has.wait(0.1)
    first.end()
    assert second.has.wait(10)
    second.end()
    with locked(tmp_path / "lock", 0.1) as lock:
        assert os.fstat(lock).st_mode & 0o777 == 0o600


def test_whoever_waited_for_a_file_that_went_waits_for_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Holder(path)
    assert first.has.wait(10)
    waiting = Holder(path)
    time.sleep(0.1)  # it has opened the file by now
    path.unlink()
    third = Holder(path)
    assert third.has.wait(10)
    first.end()
    assert not waiting.has.wait(0.3), "two hold the lock"
    third.end()
    assert waiting.has.wait(10)
    waiting.end()


def test_a_name_in_an_open_folder_is_locked_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    folder = os.open(tmp_path / "there", os.O_RDONLY)
    try:
        with locked(Path("/not/looked/at/lock"), 1, folder=folder):
            assert [path.name for path in (tmp_path / "there").iterdir()] == ["lock"]
    finally:
        os.close(folder)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "lock", 1):
        pass
    assert not (tmp_path / "elsewhere").exists()
