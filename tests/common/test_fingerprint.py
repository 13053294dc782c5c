"""One changed weight is another model, however well it is hidden."""

import fcntl
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from kvlingua.common.config import Config
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity import fingerprint as module
from kvlingua.common.identity.fingerprint import FingerprintTask, fingerprint_files
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.identity.process_start import process_start_ns
from tests.common.samples import model_folder

SETTLED_S = 0.15  # longer than a fresh file is kept out of the cache, here


@pytest.fixture(autouse=True)
def no_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file systems of these tests have a finer clock than the worst one."""
    monkeypatch.setattr(module, "_SETTLED_NS", 100_000_000)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes were read, as they are."""
    names: list[str] = []
    real = hashlib.file_digest

    def counted(file: Any, *arguments: Any) -> Any:
        names.append(Path(file.name).name)
        return real(file, *arguments)

    monkeypatch.setattr(module.hashlib, "file_digest", counted)
    return names


def files(folder: Path, **contents: bytes) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    time.sleep(SETTLED_S)
    return {name: folder / name for name in contents}


def test_the_written_rule(tmp_path: Path) -> None:
    found = fingerprint_files(files(tmp_path / "model", b=b"two", a=b"one"), tmp_path / "cache")
    one, two = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()
    assert found == hashlib.sha256(f'[["a","{one}"],["b","{two}"]]'.encode()).hexdigest()


def test_files_are_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    weights = files(tmp_path / "model", a=b"one", b=b"two")
    first = fingerprint_files(weights, tmp_path / "cache")
    assert hashed == ["a", "b"]
    assert fingerprint_files(weights, tmp_path / "cache") == first
    assert hashed == ["a", "b"]
    linked = {"a": tmp_path / "linked", "b": weights["b"]}
    linked["a"].symlink_to(weights["a"])
    assert fingerprint_files(linked, tmp_path / "cache") == first
    assert hashed == ["a", "b"]


def test_the_same_files_elsewhere_agree_and_other_names_do_not(tmp_path: Path) -> None:
    one = fingerprint_files(files(tmp_path / "one", a=b"one", b=b"two"), tmp_path / "cache")
    assert fingerprint_files(files(tmp_path / "two", a=b"one", b=b"two"), tmp_path / "cache") == one
    assert fingerprint_files(files(tmp_path / "three", a=b"two", b=b"one"), tmp_path / "cache") != one
    assert fingerprint_files(files(tmp_path / "four", a=b"one"), tmp_path / "cache") != one


def test_one_bit_with_size_and_mtime_restored_is_noticed(tmp_path: Path, hashed: list[str]) -> None:
    weights = files(tmp_path / "model", a=bytes(1000))
    before, first = os.stat(weights["a"]), fingerprint_files(weights, tmp_path / "cache")
    with weights["a"].open("r+b") as file:
        file.seek(500)
        file.write(b"\x01")
    os.utime(weights["a"], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(weights["a"])
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert fingerprint_files(weights, tmp_path / "cache") != first
    assert hashed == ["a", "a"]


def flip_mapped(path: Path, place: int) -> None:
    """One bit, through a shared mapping that isn't synced."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[place] ^= 1


def test_a_write_to_a_page_that_is_dirty_already_is_noticed(tmp_path: Path) -> None:
    """The kernel changes the ctime when a page becomes dirty, and not again before it is clean."""
    weights = files(tmp_path / "model", a=bytes(100_000))
    os.sync()
    with weights["a"].open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[5000] ^= 1
        time.sleep(SETTLED_S)
        first = fingerprint_files(weights, tmp_path / "cache")
        memory[5001] ^= 1
    second = fingerprint_files(weights, tmp_path / "cache")
    assert second != first
    assert second == fingerprint_files(weights, tmp_path / "other cache")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a tmpfs at /dev/shm")
def test_files_in_memory_are_hashed_each_time(tmp_path: Path, hashed: list[str]) -> None:
    """A write through a mapping changes no time of theirs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        weights = files(Path(folder) / "model", a=bytes(100_000))
        first, before = fingerprint_files(weights, tmp_path / "cache"), os.stat(weights["a"])
        flip_mapped(weights["a"], 5000)
        after = os.stat(weights["a"])
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
        assert fingerprint_files(weights, tmp_path / "cache") != first
    assert hashed == ["a", "a"]


def test_a_file_that_was_changed_just_now_is_not_kept(tmp_path: Path, hashed: list[str]) -> None:
    """Within one tick of the kernel's clock a second change would leave the same ctime."""
    (tmp_path / "a").write_bytes(b"one")
    for _ in range(2):
        fingerprint_files({"a": tmp_path / "a"}, tmp_path / "cache")
    assert hashed == ["a", "a"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = files(tmp_path / "model", a=bytes(1000))
    real = hashlib.file_digest

    def changing(file: Any, *arguments: Any) -> Any:
        digest = real(file, *arguments)
        weights["a"].write_bytes(bytes(999) + b"1")
        return digest

    monkeypatch.setattr(module.hashlib, "file_digest", changing)
    with pytest.raises(UnsupportedError, match="changed while it was read"):
        fingerprint_files(weights, tmp_path / "cache")
    monkeypatch.undo()
    fingerprint_files(weights, tmp_path / "cache")


def test_the_cache_is_private(tmp_path: Path) -> None:
    weights = files(tmp_path / "model", a=b"one")
    fingerprint_files(weights, tmp_path / "some" / "cache")
    folder = tmp_path / "some" / "cache"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        "lock": 0o600,
        "digests.json": 0o600,
    }
    folder.chmod(0o770)
    with pytest.raises(UnsupportedError, match="may be written by others: chmod 700"):
        fingerprint_files(weights, folder)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"\xff", b'{"a":1}', b"[" * 5000, b"{}" * (4 << 20)])
def test_a_damaged_cache_is_written_anew(garbage: bytes, tmp_path: Path, hashed: list[str]) -> None:
    weights = files(tmp_path / "model", a=b"one")
    first = fingerprint_files(weights, tmp_path / "cache")
    (tmp_path / "cache" / "digests.json").write_bytes(garbage)
    assert fingerprint_files(weights, tmp_path / "cache") == first
    assert hashed == ["a", "a"]
    assert list(json.loads((tmp_path / "cache" / "digests.json").read_text()).values()) == [
        hashlib.sha256(b"one").hexdigest()
    ]


def test_a_holder_that_was_stopped_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    weights = files(tmp_path / "model", a=b"one")
    first = fingerprint_files(weights, tmp_path / "cache")
    monkeypatch.setattr(module, "_LOCK_TIMEOUT_S", 0.2)
    with (tmp_path / "cache" / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fingerprint_files(weights, tmp_path / "cache") == first
    assert hashed == ["a", "a"]
    assert fingerprint_files(weights, tmp_path / "cache") == first
    assert hashed == ["a", "a"]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null"), tmp_path / "absent"):
        with pytest.raises(UnsupportedError, match=r"can't be read|no regular file"):
            fingerprint_files({"a": path}, tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedError, match="set fingerprint_dir"):
        fingerprint_files({}, tmp_path / "file")


def described(path: Path) -> ModelDescription:
    return describe_model(model_folder(path), compute_dtype="float32", kv_dtype="float32")


def task(path: Path, **options: Any) -> FingerprintTask:
    return FingerprintTask(described(path), Config(fingerprint_dir=path.parent / "cache"), **options)


def test_a_task_gives_the_fingerprint(tmp_path: Path) -> None:
    one = task(tmp_path / "model", tensors_compared=True)
    found = one.wait(60)
    assert found == fingerprint_files(
        {"model.safetensors": tmp_path / "model" / "model.safetensors"}, tmp_path / "cache"
    )
    assert one.result() == found
    assert one.error is None


def test_files_that_changed_after_the_process_began_are_refused(tmp_path: Path) -> None:
    """The model was written by this very process, so what an engine in it has read can't be proved."""
    one = task(tmp_path / "model")
    assert one.wait(60) is None
    assert isinstance(one.error, UnsupportedError)
    assert one.error.reason == "weights_changed"
    assert "restart the engine" in str(one.error)


def test_a_process_that_began_after_the_files_changed_has_a_fingerprint(tmp_path: Path) -> None:
    description = described(tmp_path / "model")
    script = (
        "import sys; from pathlib import Path; from kvlingua.common.config import Config\n"
        "from kvlingua.common.identity.fingerprint import FingerprintTask\n"
        "from kvlingua.common.identity.model import describe_model\n"
        "path = Path(sys.argv[1]); model = describe_model(path, compute_dtype='float32', kv_dtype='float32')\n"
        "def ask():\n"
        "    task = FingerprintTask(model, Config(fingerprint_dir=path.parent / 'cache'))\n"
        "    print(task.wait(60) or task.error)\n"
        "ask(); sys.stdout.flush()\n"
        "(path / 'notes.txt').write_text('harmless'); ask()\n"
        "path.rename(path.with_name('old')); path.with_name('old').rename(path); ask()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    first, second, third = done.stdout.splitlines()
    assert first == second == fingerprint_files(description.weight_files, tmp_path / "other")
    assert "changed after this process began" in third


def test_the_start_of_a_process_is_known_to_a_tick() -> None:
    script = "from kvlingua.common.identity.process_start import process_start_ns as start; print(start())"
    before = time.time_ns()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    after = time.time_ns()
    assert before - 20_000_000 <= int(done.stdout) <= after
    first, second = process_start_ns(), process_start_ns()
    assert first is not None
    assert second is not None
    assert abs(first - second) < 20_000_000


def test_a_task_asked_before_a_fork_is_asked_anew_after_it(tmp_path: Path) -> None:
    """The thread that worked in the parent isn't there in the child."""
    one = task(tmp_path / "model", tensors_compared=True)
    child = os.fork()
    if child == 0:  # no assertion may leave the child as an exception: pytest would go on twice
        os._exit(0 if one.wait(60) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert one.wait(60)
