"""One object in bulk: what the native library reads, refuses and writes is what Python reads, refuses and writes."""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlingua.common import bulk
from kvlingua.common.container import Container
from kvlingua.common.errors import ContainerError
from kvlingua.common.scratch import ScratchPool
from kvlingua.common.slots import passing
from kvlingua.layouts import native
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import make_plan
from tests.common.kv import CHUNK, namespace
from tests.common.samples import containers, stored
from tests.hanging import hanging_folder

pytestmark = pytest.mark.skipif(not bulk.available(), reason=native.describe())


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def scratch(nbytes: int) -> memoryview:
    piece = ScratchPool(1 << 30).acquire(nbytes)
    assert piece is not None
    return memoryview(piece)


class Reader:
    """Loads one object of a container from a file into a pool of layout `canonical`, the data of which lie in
    `target`."""

    def __init__(self, container: Container, digest: bytes, needed: Extent | None = None) -> None:
        self.container, self.digest = container, digest
        self.needed = container.extent if needed is None else needed
        tokens, geometry = container.namespace.chunk_tokens, container.namespace.geometry
        self.target = bytearray(b"\x5a" * geometry.block_bytes(self.needed, tokens))
        pool = format("canonical").pool(
            geometry, self.needed, page=tokens, blocks=1, buffers=[Buffer.of(self.target)], strides={}
        )
        self.memory = scratch(container.object_bytes)
        source = passing(container, self.memory, 0, tokens)
        plan = make_plan(source, pool.view(array("q", [0]), 0, tokens))
        self.batch = bulk.Batch(container, self.needed, plan, [digest])

    def load(self, folder: int, gate: bulk.Gate | None = None) -> bool:
        [[intact]] = bulk.load([self.batch], folder, self.memory, 1, gate or bulk.Gate())
        return intact

    @property
    def untouched(self) -> bool:
        return self.target == b"\x5a" * len(self.target)


def file_of(container: Container, digest: bytes) -> str:
    extent = container.extent
    heads, layers = f"h{extent.head_start}-{extent.head_stop}", f"l{extent.layer_start}-{extent.layer_stop}"
    return f"{digest.hex()}-{heads}-{layers}.safetensors"


def put(folder: Path, container: Container, digest: bytes, data: bytes | bytearray) -> Path:
    path = folder / file_of(container, digest)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@given(container=containers(), chunk=st.integers(0, 3))
@settings(max_examples=60)
def test_it_writes_the_bytes_that_python_writes(
    container: Container, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    written, digest = stored(container, chunk)
    folder = tmp_path_factory.mktemp("new")
    memory = scratch(container.object_bytes)[: container.object_bytes]
    memory[container.header_bytes :] = written[container.header_bytes :]
    with opened(folder) as descriptor:
        (folder / "new").touch(0o600)
        os.truncate(folder / "new", container.object_bytes)
        first_token = chunk * container.namespace.chunk_tokens
        one = bulk.NewObject(descriptor, "new", digest, first_token, memory, 1_700_000_000_123_456_789)
        assert bulk.store(container, [one], 1) == [None]
    assert memory == written
    assert (folder / "new").read_bytes() == written
    assert (folder / "new").stat().st_mtime_ns == 1_700_000_000_123_456_789


@given(data=st.data(), container=containers())
@settings(max_examples=60)
def test_it_accepts_what_python_accepts(
    data: st.DataObject, container: Container, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One byte changed anywhere, read by somebody who needs any part of it."""
    written, digest = stored(container)
    head, layer = (
        sorted(data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True)))
        for low, high in (
            (container.extent.head_start, container.extent.head_stop),
            (container.extent.layer_start, container.extent.layer_stop),
        )
    )
    needed = Extent(*head, *layer)
    place = data.draw(st.integers(0, len(written) - 1))
    changed = bytearray(written)
    changed[place] = data.draw(st.integers(0, 255))
    try:
        container.verify(memoryview(changed), digest, needed)
        right = True
    except ContainerError:
        right = False
    reader = Reader(container, digest, needed)
    folder = tmp_path_factory.mktemp("object")
    put(folder, container, digest, changed)
    with opened(folder) as descriptor:
        assert reader.load(descriptor) == right
    if right:
        assert reader.target == expected(container, written, needed)
    else:
        assert reader.untouched


def expected(container: Container, obj: bytearray, needed: Extent) -> bytes:
    """The data of an object that holds just `needed`, cut out plane by plane."""
    found, base = b"", container.header_bytes
    extent, tokens = container.extent, container.namespace.chunk_tokens
    for plane in container.namespace.geometry.planes:
        heads = 1 if plane.per == "tensor" else extent.heads
        layer = plane.width * plane.itemsize * (tokens if plane.per == "token" else 1)
        for head in range(heads) if plane.per == "tensor" else range(needed.head_start, needed.head_stop):
            row = base + (head - (0 if plane.per == "tensor" else extent.head_start)) * extent.layers * layer
            start = row + (needed.layer_start - extent.layer_start) * layer
            found += obj[start : start + needed.layers * layer]
        base += heads * extent.layers * layer
    return found


def test_no_byte_of_an_object_can_be_flipped(tmp_path: Path) -> None:
    """Every byte of one object, and the same of those it is read with."""
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    path = put(tmp_path, container, digest, written)
    reader = Reader(container, digest)
    with opened(tmp_path) as folder, path.open("r+b", buffering=0) as file:
        for place in range(container.object_bytes):
            os.pwrite(file.fileno(), bytes([written[place] ^ 1 << place % 8]), place)
            assert not reader.load(folder), place
            os.pwrite(file.fileno(), written[place : place + 1], place)
        assert reader.untouched
        assert reader.load(folder)
    assert reader.target == written[container.header_bytes :]


def test_who_needs_an_eighth_reads_an_eighth(tmp_path: Path) -> None:
    """A byte that it doesn't need may even be unreadable; one that it needs may not."""
    one = namespace(kv_heads=8, planes={"k": 64, "v": 64})
    container = Container(one, Extent(0, 8, 0, 3))
    written, digest = stored(container)
    with hanging_folder(tmp_path) as folder, opened(folder.path) as descriptor:
        path = put(folder.path, container, digest, written)
        for head in range(8):
            reader = Reader(container, digest, Extent(head, head + 1, 0, 3))
            assert reader.load(descriptor)
            assert reader.target == expected(container, written, reader.needed)
        half = container.header_bytes + container.data_bytes // 2  # where V begins
        eighth = container.data_bytes // 16
        folder.spoil(**{path.name: {"flip": half + eighth}})
        assert Reader(container, digest, Extent(0, 1, 0, 3)).load(descriptor)
        reader = Reader(container, digest, Extent(1, 2, 0, 3))
        assert not reader.load(descriptor)
        assert reader.untouched
    assert bulk.read_bytes(container, Extent(3, 4, 0, 3)) == container.header_bytes + 2 * eighth


@pytest.mark.parametrize("thing", ["link", "fifo", "another size", "written by all", "gone", "folder"])
def test_objects_are_written_to_files_of_ours_only(tmp_path: Path, thing: str) -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ["first", "second", "third"]
    for name in names:
        (folder / name).write_bytes(bytes(container.object_bytes))
        (folder / name).chmod(0o600)
    victim = folder / "second"
    if thing == "another size":
        os.truncate(victim, 10)
    elif thing == "written by all":
        victim.chmod(0o666)
    else:
        victim.unlink()
    if thing == "link":
        (tmp_path / "elsewhere").write_bytes(bytes(container.object_bytes))
        victim.symlink_to(tmp_path / "elsewhere")
    elif thing == "fifo":
        os.mkfifo(victim)
    elif thing == "folder":
        victim.mkdir()
    with opened(folder) as descriptor:
        objects = [bulk.NewObject(descriptor, name, digest, CHUNK, memoryview(bytearray(written)), 0) for name in names]
        first, second, third = bulk.store(container, objects, 1)
    assert first is None
    assert isinstance(second, OSError)
    assert isinstance(third, OSError)
    assert (folder / "first").read_bytes() == written
    assert (folder / "third").read_bytes() == bytes(container.object_bytes)
    if thing == "link":
        assert (tmp_path / "elsewhere").read_bytes() == bytes(container.object_bytes)


def test_a_header_longer_or_shorter_than_it_should_be_is_refused(tmp_path: Path) -> None:
    """Of another namespace: the sizes differ, or the bytes do."""
    ours, theirs = Container(namespace(), Extent(0, 4, 0, 3)), Container(namespace(lora="x"), Extent(0, 4, 0, 3))
    written, digest = stored(theirs)
    put(tmp_path, ours, digest, written)
    reader = Reader(ours, digest)
    with opened(tmp_path) as folder:
        assert not reader.load(folder)
        same_size = bytearray(ours.object_bytes)
        same_size[: len(written)] = written[: ours.object_bytes]
        put(tmp_path, ours, digest, same_size)
        assert not reader.load(folder)
        assert reader.untouched


@pytest.mark.parametrize("thing", ["right", "another user's", "written by the group", "link"])
def test_a_right_object_is_read_from_files_of_ours_only(tmp_path: Path, thing: str) -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    path = put(tmp_path, container, digest, written)
    if thing == "another user's":
        if os.geteuid() != 0:
            pytest.skip("giving files to another user needs root")
        os.chown(path, 65534, -1)
    elif thing == "written by the group":
        path.chmod(0o620)
    elif thing == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to("elsewhere")
    reader = Reader(container, digest)
    with opened(tmp_path) as folder:
        assert reader.load(folder) == (thing == "right")
    assert reader.untouched == (thing != "right")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("chain", b"0" * 64),
        ("first_token", b"0000000008"),
        ("first_token", b"000000001 "),
        ("first_token", b"-000000016"),
        ("namespace_digest", b"0" * 64),
    ],
)
def test_a_header_that_lies_under_a_right_checksum_is_refused(tmp_path: Path, field: str, text: bytes) -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    head = memoryview(written)[: container.header_bytes]
    start = written.index(f'"{field}":"'.encode()) + len(field) + 4
    assert head[start : start + len(text)] != text
    head[start : start + len(text)] = text
    head[container.template.places["header_checksum"]] = container.template.checksum(head)
    put(tmp_path, container, digest, written)
    reader = Reader(container, digest)
    with opened(tmp_path) as folder:
        assert not reader.load(folder)
    assert reader.untouched
