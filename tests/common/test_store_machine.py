"""Stores against a dictionary: any order of calls, with a cap that bites."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvlingua.common.errors import StoreFull
from kvlingua.common.stores.conformance import fetch, key_of
from kvlingua.common.stores.store import Read, Store, open_store

CAP = 1000
keys = st.integers(0, 12).map(lambda number: key_of(number, namespace=f"{number % 3}" * 64))
bodies = st.integers(0, 400).map(lambda size: bytes(range(256)) * 2 if size == 400 else b"%03d" % size * (size // 3))


class StoreMachine(RuleBasedStateMachine):
    """`put`: what was put last under a key and may be there; `must`: keys that nothing can have evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.put: dict[str, bytes] = {}
        self.must: set[str] = set()
        self.folder = Path(tempfile.mkdtemp(prefix="kvlingua-"))
        self.store = self.open()

    def open(self) -> Store:
        raise AssertionError("which store?")

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(batch=st.dictionaries(keys, bodies, max_size=4))
    def put_many(self, batch: dict[str, bytes]) -> None:
        there = dict(zip(batch, self.store.exists_many(list(batch)), strict=True))
        new = {key: body for key, body in batch.items() if not there[key]}
        used = sum(entry.nbytes for entry in self.store.scan())
        roomy = used + sum(map(len, new.values())) <= CAP
        try:
            self.store.put_many([(key, [body[:7], body[7:]]) for key, body in batch.items()])
        except StoreFull:
            assert not roomy
        for key, body in batch.items():  # one that was there may go while room is made, and be put anew
            if key in new or (not roomy and fetch(self.store, key, len(body)) == (len(body), body)):
                self.put[key] = body
        if roomy:
            self.must |= new.keys()
        else:
            self.must.clear()

    @rule(some=st.lists(keys, max_size=4))
    def delete_many(self, some: list[str]) -> None:
        self.store.delete_many(some)
        self.must -= set(some)
        assert not any(self.store.exists_many(some))

    @rule(chain=st.lists(keys, max_size=5, unique=True))
    def touch_chain(self, chain: list[str]) -> None:
        self.store.touch_chain(chain)
        times = {entry.key: entry.mtime for entry in self.store.scan()}
        there = [key for key in chain if key in times]
        assert [times[key] for key in there] == sorted((times[key] for key in there), reverse=True)

    @rule(key=keys, offset=st.integers(0, 600), length=st.integers(0, 600))
    def read(self, key: str, offset: int, length: int) -> None:
        buffer = bytearray(b"\xee" * length)
        [size] = self.store.get_many([Read(key, offset, memoryview(buffer))])
        wanted = self.put.get(key, b"")[offset : offset + length] if size is not None else b""
        assert buffer == wanted + b"\xee" * (length - len(wanted))

    @rule()
    def reopen(self) -> None:
        if self.store.capabilities.persistent:
            self.store.close()
            self.store = self.open()

    @invariant()
    def holds_what_it_should(self) -> None:
        entries = list(self.store.scan())
        assert len({entry.key for entry in entries}) == len(entries)
        assert sum(entry.nbytes for entry in entries) <= CAP
        assert self.must <= {entry.key for entry in entries}
        for entry in entries:
            assert fetch(self.store, entry.key, entry.nbytes) == (entry.nbytes, self.put[entry.key])
        asked = sorted(self.put)
        found = dict(zip(asked, self.store.exists_many(asked), strict=True))
        assert {key for key, there in found.items() if there} == {entry.key for entry in entries}


class FileMachine(StoreMachine):
    def open(self) -> Store:
        return open_store(f"file://{self.folder}/store", CAP)

    @invariant()
    def counts_exactly(self) -> None:
        usage = self.folder / "store" / ".usage"
        if usage.exists():
            assert int(usage.read_bytes()) == sum(path.stat().st_size for path in usage.parent.glob("*/*"))


class MemoryMachine(StoreMachine):
    def open(self) -> Store:
        return open_store("memory://", CAP)


limits = settings(max_examples=30, stateful_step_count=20, deadline=None)
FileMachine.TestCase.settings = limits
MemoryMachine.TestCase.settings = limits
TestFileMachine = FileMachine.TestCase
TestMemoryMachine = MemoryMachine.TestCase
