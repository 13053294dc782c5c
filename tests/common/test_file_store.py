"""A folder shared by processes, real ones: the cap, the order of eviction, temporaries, crashes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kvlingua.common.errors import StoreError, StoreFull, StoreTimeout
from kvlingua.common.stores import eviction, file_store, temporary
from kvlingua.common.stores.conformance import fetch, key_of
from kvlingua.common.stores.file_store import FileStore
from kvlingua.common.stores.store import Read

CLONE = Path(__file__).parents[2]


def opened(folder: Path, max_bytes: int = 1 << 30) -> FileStore:
    return FileStore(f"file://{folder}", max_bytes)


def start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, cwd=CLONE, stdout=subprocess.PIPE, text=True)


def bytes_in(folder: Path) -> int:
    """All bytes in the namespaces' folders, temporary files included, while no process may change them."""
    with (folder / ".usage").open("r+b") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.glob("*/*"))


WRITER = """
    import random, sys
    from kvlingua.common.stores.conformance import key_of
    from kvlingua.common.errors import StoreFull
    from kvlingua.common.stores.file_store import FileStore
    folder, seed, cap = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = FileStore(f"file://{folder}", cap)
    choose = random.Random(seed)
    for turn in range(60):
        chain = [key_of(f"{seed} {turn} {i}" if seed % 2 else f"{turn} {i}") for i in range(choose.randint(1, 6))]
        store.touch_chain(chain)
        try:
            store.put_many([(key, [key.encode() * choose.randint(1, 60)]) for key in chain])
        except StoreFull:
            pass
        if turn % 10 == 0:
            store.delete_many(chain[-1:])
    print("done")
"""


def test_the_cap_holds_while_several_processes_write(tmp_path: Path) -> None:
    """Four processes, two of which want the same objects."""
    folder, cap = tmp_path / "store", 60_000
    opened(folder, cap).put_many([(key_of(0), [b"x"])])
    writers = [start(WRITER, folder, seed, cap) for seed in (1, 3, 2, 4)]
    totals = []
    while any(writer.poll() is None for writer in writers):
        totals.append(bytes_in(folder))
        time.sleep(0.002)
    assert [writer.communicate()[0] for writer in writers] == ["done\n"] * 4
    assert max(totals) <= cap
    assert max(totals) > cap // 2, "the store never got full: this test shows nothing"
    assert int((folder / ".usage").read_bytes()) == bytes_in(folder)
    store = opened(folder, cap)
    for entry in store.scan():
        if entry.key != key_of(0):
            assert fetch(store, entry.key, entry.nbytes)[1] == entry.key.encode() * (entry.nbytes // len(entry.key))
    assert not list(folder.glob("*/.tmp-*"))


def test_a_killed_writer_leaves_nothing_that_counts_for_long(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    writer = start(
        """
        import os, sys, time
        from kvlingua.common.stores import file_store
        from kvlingua.common.stores.conformance import key_of
        def stop(descriptor, views):
            os.pwrite(descriptor, b"half", 0)
            print("writing", flush=True)
            time.sleep(60)
        file_store._write = stop
        file_store.FileStore(f"file://{sys.argv[1]}", 1000).put_many([(key_of(1), [b"x" * 600])])
        """,
        folder,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    store = opened(folder, 1000)
    assert store.exists_many([key_of(1)]) == [False]
    assert list(store.scan()) == []
    with pytest.raises(StoreFull):  # the room is taken as long as the writer may be alive
        store.put_many([(key_of(2), [b"x" * 600])])
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    [left] = folder.glob("*/.tmp-*")
    assert left.stat().st_size == 600
    os.utime(left, (time.time() - temporary.STALE_S - 1,) * 2)
    store.put_many([(key_of(2), [b"x" * 600])])
    assert not left.exists()
    assert bytes_in(folder) == 600


def test_only_stale_temporaries_of_others_go(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    opened(folder).put_many([(key_of(0), [b"x"])])
    [namespace] = [path for path in folder.iterdir() if path.is_dir()]
    own, now = temporary.new_name(), time.time()
    ages = {".tmp-host-1-1": 599, ".tmp-host-1-2": 601, ".tmp-host-1-3": -601, own: 10_000}
    for name, age in ages.items():
        (namespace / name).write_bytes(b"x")
        os.utime(namespace / name, (now - age, now - age))
    opened(folder).put_many([(key_of(1), [b"x"])])  # a store's first write looks at the whole folder
    assert {path.name for path in namespace.glob(".tmp-*")} == {".tmp-host-1-1", own}
    temporary.forget(own)
    opened(folder).put_many([(key_of(2), [b"x"])])
    assert {path.name for path in namespace.glob(".tmp-*")} == {".tmp-host-1-1"}


def test_a_name_says_who_writes(tmp_path: Path) -> None:
    name = temporary.new_name()
    assert name.startswith(".tmp-")
    assert name.split("-")[2] == str(os.getpid())
    assert temporary.is_temporary(name)
    assert temporary.new_name() != name
    assert "/" not in name


def test_a_restarted_container_has_other_names() -> None:
    """Host, pid and counter are those of the process that was killed; what it left is still there."""
    program = """
        import os, socket
        os.getpid, socket.gethostname = lambda: 7, lambda: "container"
        from kvlingua.common.stores import temporary
        print(temporary.new_name())
    """
    first, second = (start(program).communicate()[0] for _ in range(2))
    assert first.startswith(".tmp-container-7-")
    assert second.startswith(".tmp-container-7-")
    assert first != second


@pytest.mark.parametrize("moment", ["open", "ftruncate"])
def test_the_cap_holds_when_a_writer_is_killed_at_any_moment(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "store"
    store = opened(folder, 1000)
    store.put_many([(key_of(0), [b"x" * 100])])
    killed = start(
        """
        import os, sys
        from kvlingua.common.stores.conformance import key_of
        from kvlingua.common.stores.file_store import FileStore
        store = FileStore(f"file://{sys.argv[1]}", 1000)
        store.put_many([(key_of(1), [b"x" * 100])])
        def die_after(name, real):
            def call(*arguments, **options):
                result = real(*arguments, **options)
                if name == "ftruncate" or str(arguments[0]).startswith(".tmp-"):
                    os._exit(9)
                return result
            return call
        setattr(os, sys.argv[2], die_after(sys.argv[2], getattr(os, sys.argv[2])))
        store.put_many([(key_of(2), [b"x" * 700])])
        """,
        folder,
        moment,
    )
    killed.communicate()
    assert killed.returncode == 9
    assert len(list(folder.glob("*/.tmp-*"))) == 1
    with suppress(StoreFull):
        store.put_many([(key_of(3), [b"x" * 700])])
    assert bytes_in(folder) <= 1000


@pytest.mark.parametrize(("moment", "named", "left"), [("fill", 0, 3), ("rename", 1, 2), ("unlink", 0, 3)])
def test_a_batch_whose_writer_is_killed_is_counted_until_it_goes(
    tmp_path: Path, moment: str, named: int, left: int
) -> None:
    """After room was made for all three objects: while they are filled, while they get their names, while a batch that
    failed is cleared away."""
    folder = tmp_path / "store"
    killed = start(
        """
        import os, sys
        from kvlingua.common.stores import file_store
        from kvlingua.common.stores.conformance import key_of
        def die(*arguments, **options):
            os._exit(9)
        real = os.rename
        def die_after(*arguments, **options):
            real(*arguments, **options)
            os._exit(9)
        store = file_store.FileStore(f"file://{sys.argv[1]}", 1000)
        def write(files):
            if sys.argv[2] == "fill":
                os._exit(9)
            if sys.argv[2] == "unlink":
                os.unlink = die
                return [OSError(28, "no room")] * len(files)
            os.rename = die_after
            return [None] * len(files)
        store.put_files([(key_of(number), 300) for number in range(3)], write)
        """,
        folder,
        moment,
    )
    killed.communicate()
    assert killed.returncode == 9
    store, temporaries = opened(folder, 1000), list(folder.glob("*/.tmp-*"))
    assert sum(store.exists_many([key_of(number) for number in range(3)])) == named
    assert len(temporaries) == left
    assert bytes_in(folder) == int((folder / ".usage").read_bytes()) == 900
    for path in temporaries:
        os.utime(path, (time.time() - temporary.STALE_S - 1,) * 2)
    store.put_many([(key_of(7), [b"x" * 600])])
    assert not list(folder.glob("*/.tmp-*"))
    assert bytes_in(folder) == int((folder / ".usage").read_bytes()) == 600 + 300 * named


def test_what_was_added_or_removed_by_hand_is_counted_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = opened(folder, 1000)
    store.put_many([(key_of(number), [b"x" * 200]) for number in range(4)])
    for number in range(4):
        (folder / key_of(number)).unlink()
    assert int((folder / ".usage").read_bytes()) == 800
    store.put_many([(key_of(number), [b"x" * 200]) for number in range(4, 8)])
    assert bytes_in(folder) == int((folder / ".usage").read_bytes()) == 800
    (folder / key_of(9)).write_bytes(b"x" * 900)
    os.utime(folder / key_of(9), (1, 1))
    opened(folder, 1000).put_many([(key_of(10), [b"x" * 200])])
    assert bytes_in(folder) <= 1000
    assert not (folder / key_of(9)).exists()


def test_an_object_dated_in_the_future_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = opened(folder, 1000)
    store.put_many([(key_of(number), [b"x" * 300]) for number in range(3)])
    os.utime(folder / key_of(1), (time.time() + 1e6,) * 2)
    store.put_many([(key_of(3), [b"x" * 300])])
    assert store.exists_many([key_of(number) for number in range(4)]) == [True, False, True, True]


def test_a_namespace_without_objects_goes_with_its_json(tmp_path: Path) -> None:
    folder, other = tmp_path / "store", "e" * 64
    store = opened(folder, 1000)
    store.put_many([(f"{other}/namespace.json", [b"{}"]), (key_of(0, other), [b"x" * 900])])
    store.put_many([(key_of(1), [b"x" * 900])])
    assert not (folder / other).exists()
    assert bytes_in(folder) == int((folder / ".usage").read_bytes()) == 900
    store.put_many([(key_of(0, other), [b"x" * 50])])  # and its folder is made anew
    assert store.exists_many([key_of(0, other)]) == [True]


def test_a_folder_removed_under_an_open_store_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = opened(folder)
    store.put_many([(key_of(0), [b"x"])])
    subprocess.run(["rm", "-r", folder], check=True)
    assert store.exists_many([key_of(0)]) == [False]
    store.put_many([(key_of(0), [b"anew"])])
    assert fetch(opened(folder), key_of(0), 4) == (4, b"anew")


def test_a_reader_keeps_what_it_has_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object goes between opening and reading."""
    folder = tmp_path / "store"
    store = opened(folder)
    store.put_many([(key_of(0), [b"still there"])])
    real = os.fstat

    def unlink_first(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if status.st_size == 11:
            (folder / key_of(0)).unlink(missing_ok=True)
        return status

    monkeypatch.setattr(os, "fstat", unlink_first)
    buffer = bytearray(11)
    assert store.get_many([Read(key_of(0), 0, memoryview(buffer))]) == [11]
    monkeypatch.undo()
    assert buffer == b"still there"
    assert store.exists_many([key_of(0)]) == [False]


def test_a_writer_that_was_stopped_stops_nobody_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    store = opened(folder)
    store.put_many([(key_of(0), [b"x"])])
    monkeypatch.setattr(eviction, "_LOCK_TIMEOUT_S", 0.2)
    with (folder / ".usage").open("r+b") as usage:
        fcntl.flock(usage, fcntl.LOCK_EX)
        with pytest.raises(StoreTimeout, match="locked"):
            store.put_many([(key_of(1), [b"x"])])
        assert fetch(store, key_of(0), 1) == (1, b"x")  # readers need no lock
    store.put_many([(key_of(1), [b"x"])])


def test_a_faster_writers_object_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process stores the same key while our temporary file is being filled."""
    slow, fast = opened(tmp_path / "store"), opened(tmp_path / "store")
    real = file_store._write

    def overtaken(descriptor: int, views: list[memoryview]) -> None:
        monkeypatch.setattr(file_store, "_write", real)
        fast.put_many([(key_of(0), [b"fast"])])
        real(descriptor, views)

    monkeypatch.setattr(file_store, "_write", overtaken)
    slow.put_many([(key_of(0), [b"slower"]), (key_of(1), [b"next"])])
    assert fetch(slow, key_of(0), 4) == (4, b"fast")
    assert bytes_in(tmp_path / "store") == int((tmp_path / "store" / ".usage").read_bytes()) == 8


def test_what_a_scan_meets_is_the_stores_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "store")
    store.put_many([(key_of(0), [b"x"])])
    real = os.scandir

    def broken(folder: int) -> "os._ScandirIterator[str]":
        if Path(os.readlink(f"/proc/self/fd/{folder}")) != tmp_path / "store":  # but a namespace's folder
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(folder)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(StoreError, match="Too many open files"):
        list(store.scan())


def test_a_batch_stops_at_what_cannot_be_stored(tmp_path: Path) -> None:
    store = opened(tmp_path / "store", 1000)
    with pytest.raises(StoreFull):
        store.put_many([(key_of(0), [b"x"]), (key_of(1), [b"x" * 2000]), (key_of(2), [b"x"])])
    assert store.exists_many([key_of(number) for number in range(3)]) == [True, False, False]
    assert bytes_in(tmp_path / "store") == int((tmp_path / "store" / ".usage").read_bytes()) == 1
