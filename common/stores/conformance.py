"""What every store must do, as tests: a backend derives from `StoreConformance` and says how it is opened.

    class TestMyStore(StoreConformance):
        def open(self, tmp_path, max_bytes): return MyStore(...)

Needs pytest where it runs, not where kvlingua is imported.
"""

import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from kvlingua.common.errors import IdentityError, StoreFull
from kvlingua.common.stores.store import Read, Store

ROOMY = 1 << 30
NAMESPACE = "0f" * 32


def key_of(number: int, namespace: str = NAMESPACE) -> str:
    """The key of some object; each number gives another."""
    return f"{namespace}/{sha256(str(number).encode()).hexdigest()}-h0-8-l0-4.safetensors"


def fetch(store: Store, key: str, nbytes: int, offset: int = 0) -> tuple[int | None, bytes]:
    """One read through `get_many`: (the object's size, the buffer, which starts as bytes of 0xEE)."""
    buffer = bytearray(b"\xee" * nbytes)
    [size] = store.get_many([Read(key, offset, memoryview(buffer))])
    return size, bytes(buffer)


class StoreConformance:
    """Derive, and override `open`."""

    def open(self, folder: Path, max_bytes: int) -> Store:
        """A store of at most `max_bytes` bytes; twice with one folder: the same store, if it is a shared one."""
        raise AssertionError(f"{type(self).__name__} must say how its store is opened")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.open(tmp_path, ROOMY)
        yield store
        store.close()

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.exists_many([key_of(0), key_of(1)]) == [False, False]
        assert fetch(store, key_of(0), 4) == (None, b"\xee" * 4)
        assert list(store.scan()) == []
        store.delete_many([key_of(0)])
        store.touch_chain([key_of(0)])

    def test_empty_batches_do_nothing(self, store: Store) -> None:
        assert store.exists_many([]) == []
        assert store.get_many([]) == []
        store.put_many([])
        store.delete_many([])
        store.touch_chain([])

    def test_what_was_put_comes_back(self, store: Store) -> None:
        store.put_many([(key_of(0), [b"head", bytearray(b"-"), memoryview(b"body")]), (key_of(1), [b"other"])])
        assert store.exists_many([key_of(1), key_of(2), key_of(0)]) == [True, False, True]
        assert fetch(store, key_of(0), 9) == (9, b"head-body")
        assert fetch(store, key_of(1), 5) == (5, b"other")

    def test_an_empty_object_exists(self, store: Store) -> None:
        store.put_many([(key_of(0), [])])
        assert store.exists_many([key_of(0)]) == [True]
        assert fetch(store, key_of(0), 2) == (0, b"\xee\xee")

    def test_ranges_are_read(self, store: Store) -> None:
        store.put_many([(key_of(0), [b"0123456789"])])
        assert fetch(store, key_of(0), 4, offset=3) == (10, b"3456")
        assert fetch(store, key_of(0), 4, offset=8) == (10, b"89\xee\xee")
        assert fetch(store, key_of(0), 0, offset=0) == (10, b"")

    def test_one_batch_reads_present_and_absent_objects(self, store: Store) -> None:
        store.put_many([(key_of(0), [b"a"]), (key_of(2), [b"c"])])
        buffers = [bytearray(1) for _ in range(3)]
        sizes = store.get_many([Read(key_of(i), 0, memoryview(buffer)) for i, buffer in enumerate(buffers)])
        assert sizes == [1, None, 1]
        assert buffers == [b"a", b"\0", b"c"]

    def test_an_existing_object_is_kept(self, store: Store) -> None:
        store.put_many([(key_of(0), [b"first"])])
        store.put_many([(key_of(0), [b"second"]), (key_of(1), [b"new"])])
        assert fetch(store, key_of(0), 5) == (5, b"first")
        assert fetch(store, key_of(1), 3) == (3, b"new")

    def test_the_caller_may_reuse_its_buffers(self, store: Store) -> None:
        buffer = bytearray(b"before")
        store.put_many([(key_of(0), [buffer])])
        buffer[:] = b"after!"
        assert fetch(store, key_of(0), 6) == (6, b"before")

    def test_deleted_objects_are_gone_and_can_be_put_anew(self, store: Store) -> None:
        store.put_many([(key_of(0), [b"old"]), (key_of(1), [b"kept"])])
        store.delete_many([key_of(0), key_of(7)])
        assert store.exists_many([key_of(0), key_of(1)]) == [False, True]
        store.put_many([(key_of(0), [b"anew"])])
        assert fetch(store, key_of(0), 4) == (4, b"anew")

    def test_large_objects_of_many_buffers(self, store: Store) -> None:
        pieces = [bytes([i % 256]) * (1000 + i) for i in range(3000)]
        whole = b"".join(pieces)
        store.put_many([(key_of(0), pieces)])
        assert fetch(store, key_of(0), len(whole)) == (len(whole), whole)

    def test_scan_tells_keys_and_sizes_by_prefix(self, store: Store) -> None:
        other = "a1" * 32
        store.put_many([(key_of(0), [b"12345"]), (key_of(1, other), [b"1"]), (f"{other}/namespace.json", [b"{}"])])
        assert {(entry.key, entry.nbytes) for entry in store.scan()} == {
            (key_of(0), 5),
            (key_of(1, other), 1),
            (f"{other}/namespace.json", 2),
        }
        assert {entry.key for entry in store.scan(other)} == {key_of(1, other), f"{other}/namespace.json"}
        assert [entry.key for entry in store.scan(key_of(0)[:70])] == [key_of(0)]
        assert list(store.scan("f" * 64)) == []

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "..",
            "/etc/passwd",
            f"{NAMESPACE}/../x.safetensors",
            f"{NAMESPACE}/.tmp-h-1-1",
            f"{NAMESPACE}",
            "a/b",
            key_of(0) + "\n",
            key_of(0).upper(),
            key_of(0) + "/x",
            f"../{key_of(0)}",
            f"{NAMESPACE}/\x00.safetensors",
        ],
    )
    def test_what_is_no_key_is_refused(self, store: Store, key: str) -> None:
        for call in (
            lambda: store.exists_many([key]),
            lambda: store.get_many([Read(key, 0, memoryview(bytearray(1)))]),
            lambda: store.put_many([(key, [b"x"])]),
            lambda: store.delete_many([key]),
            lambda: store.touch_chain([key]),
        ):
            with pytest.raises(IdentityError, match="key"):
                call()
        assert list(store.scan()) == []

    def test_the_cap_holds_and_the_oldest_goes(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        for number in range(30):
            store.put_many([(key_of(number), [b"x" * 100])])
            assert sum(entry.nbytes for entry in store.scan()) <= 1000
        there = store.exists_many([key_of(number) for number in range(30)])
        assert there == sorted(there)  # a run of the newest
        assert sum(there) >= 8
        store.close()

    def test_a_chain_goes_from_its_tail(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        chain = [key_of(number) for number in range(6)]
        store.touch_chain(chain)
        store.put_many([(key, [b"x" * 100]) for key in chain])
        store.touch_chain(chain)
        for number in range(100, 106):
            store.put_many([(key_of(number), [b"y" * 100])])
            there = store.exists_many(chain)
            assert there == sorted(there, reverse=True), "a head was evicted before its tail"
        assert not all(store.exists_many(chain))
        store.close()

    def test_a_used_chain_outlives_an_unused_one(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        used, unused = key_of(0), key_of(1)
        store.put_many([(used, [b"x" * 400])])
        store.put_many([(unused, [b"x" * 400])])
        store.touch_chain([used])
        store.put_many([(key_of(2), [b"x" * 400])])
        assert store.exists_many([used, unused, key_of(2)]) == [True, False, True]
        store.close()

    def test_a_longer_chain_keeps_its_head_newest(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        chain = [key_of(number) for number in range(4)]
        for length in (2, 4):  # a prompt, then a longer one that begins with it
            store.touch_chain(chain[:length])
            store.put_many([(key, [b"x" * 100]) for key in chain[length - 2 : length]])
        times = {entry.key: entry.mtime for entry in store.scan()}
        assert [times[key] for key in chain] == sorted(times.values(), reverse=True)
        store.close()

    def test_a_chain_longer_than_the_store_keeps_its_head(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        chain = [key_of(number) for number in range(20)]
        store.touch_chain(chain)
        with pytest.raises(StoreFull, match="max_bytes") as full:
            store.put_many([(key, [b"x" * 100]) for key in chain])
        there = store.exists_many(chain)
        assert there == sorted(there, reverse=True)
        assert sum(there) == full.value.stored >= 8
        store.close()

    def test_an_object_beyond_the_cap_is_refused_and_evicts_nothing(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        store.put_many([(key_of(0), [b"x" * 500])])
        with pytest.raises(StoreFull, match="1001"):
            store.put_many([(key_of(1), [b"x" * 1001])])
        assert store.exists_many([key_of(0), key_of(1)]) == [True, False]
        store.close()

    def test_deleting_makes_room(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, 1000)
        store.put_many([(key_of(0), [b"x" * 900])])
        store.delete_many([key_of(0), key_of(0)])
        store.put_many([(key_of(1), [b"x" * 500]), (key_of(2), [b"x" * 500])])
        assert store.exists_many([key_of(1), key_of(2)]) == [True, True]
        store.close()

    def test_threads_share_a_store(self, store: Store) -> None:
        failures: list[str] = []

        def work(seed: int) -> None:
            for number in range(20):
                key, body = key_of(number), b"%04d" % number * 256
                store.put_many([(key, [body])])
                size, found = fetch(store, key, len(body))
                if size != len(body) or found != body:
                    failures.append(f"thread {seed}, object {number}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_another_opener_sees_the_objects(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, ROOMY)
        if not store.capabilities.shared:
            pytest.skip("this store is private to its opener")
        other = self.open(tmp_path, ROOMY)
        store.put_many([(key_of(0), [b"shared"])])
        assert fetch(other, key_of(0), 6) == (6, b"shared")
        other.delete_many([key_of(0)])
        assert store.exists_many([key_of(0)]) == [False]
        store.close()
        other.close()

    def test_objects_outlive_their_opener(self, tmp_path: Path) -> None:
        store = self.open(tmp_path, ROOMY)
        if not store.capabilities.persistent:
            pytest.skip("this store is gone with its opener")
        store.put_many([(key_of(0), [b"kept"])])
        store.close()
        again = self.open(tmp_path, ROOMY)
        assert fetch(again, key_of(0), 4) == (4, b"kept")
        again.close()

    def test_it_says_what_it_is(self, store: Store) -> None:
        assert store.describe()
        assert "\n" not in store.describe()
