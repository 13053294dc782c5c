"""A store's folder with strange things in it: each is refused or passed over, none is followed, and none hangs."""

import json
import os
import socket
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.container import parse_header
from kvlingua.common.errors import ContainerError, LoadError, StoreError
from tests import spoil
from tests.attacks.forger import with_header
from tests.common.kv import Cache, namespace

pytestmark = pytest.mark.timeout(30)
TOKENS = list(range(96))
NOBODY = 65534
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="giving files to another user, and making devices, needs root"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with 6 chunks."""
    with KVCache.open(f"file://{tmp_path}/store") as cache:
        assert store_all(cache).error is None
    return tmp_path / "store"


@pytest.fixture
def cache(root: Path, way: str) -> Iterator[KVCache]:
    with KVCache.open(Config(url=f"file://{root}")) as cache:
        yield cache


def store_all(cache: KVCache, first: int = 0):  # type: ignore[no-untyped-def]
    handle = cache.store(namespace(), [first, *TOKENS[1:]], Cache(namespace(), 96, seed=1).view(), 0, 96)
    assert handle.committed.wait(10)
    return handle


def bind_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("s")
        os.rename("s", path.name)
    finally:
        os.chdir(here)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def own_file(path: Path, mode: int, user: int) -> None:
    path.write_bytes(b"x" * 20000)
    path.chmod(mode)
    os.chown(path, user, -1)


NOT_OBJECTS: dict[str, Callable[[Path], object]] = {
    "link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to another object": lambda path: path.symlink_to(next(path.parent.glob("*.safetensors"))),
    "fifo": os.mkfifo,
    "socket": bind_socket,
    "folder": lambda path: path.mkdir(),
    "written by all": lambda path: own_file(path, 0o666, os.geteuid()),
}
NOT_OBJECTS_OF_ROOT: dict[str, Callable[[Path], object]] = {
    "device that never ends": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
    "terminal": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(5, 0)),
    "block device": lambda path: os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 99)),
    "another user's": lambda path: own_file(path, 0o600, NOBODY),
}


@pytest.mark.parametrize(
    "thing",
    [*NOT_OBJECTS, *(pytest.param(thing, marks=needs_root) for thing in NOT_OBJECTS_OF_ROOT)],
)
def test_what_is_no_file_of_ours_is_no_object(cache: KVCache, root: Path, thing: str, way: str) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    key = list(hit.keys(0, 6))[2]
    (root / key).unlink()
    (NOT_OBJECTS | NOT_OBJECTS_OF_ROOT)[thing](root / key)
    assert cache.lookup(namespace(), TOKENS).tokens == 32
    target = Cache(namespace(), 96)
    with pytest.raises(LoadError, match="1 of 6 objects are gone"):
        cache.load(hit, target.view(), 0, 96)
    assert target.holds_at_most(Cache(namespace(), 96, seed=1), (0, 1) if way == "in bulk" else ())
    handle = store_all(cache)
    assert handle.stored == 1 or isinstance(handle.error, StoreError)
    if thing == "folder":  # nothing but a person can decide about it
        assert isinstance(handle.error, StoreError)
        assert key in str(handle.error)
    else:
        assert handle.error is None
        assert stat.S_ISREG(os.lstat(root / key).st_mode)
        cache.load(cache.lookup(namespace(), TOKENS), target.view(), 0, 96)
        assert target.same_tokens(Cache(namespace(), 96, seed=1), 0, 96)


def test_a_huge_file_in_place_of_an_object_is_damage(cache: KVCache, root: Path) -> None:
    hit = cache.lookup(namespace(), TOKENS)
    huge(root / next(iter(hit.keys(0, 6))))
    (root / next(iter(hit.keys(0, 6)))).chmod(0o600)
    with pytest.raises(LoadError, match="damaged"):
        cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
    assert len(spoil.objects(root)) == 5


def test_a_header_of_a_model_that_cannot_be_is_removed_in_bounded_memory(cache: KVCache, root: Path) -> None:
    """What it says of itself is a part for each of 6,000 layers, with 65,536 runs each: nobody makes them."""
    giant = namespace(layers=6000, kv_heads=1 << 16, heads_per_shard=1 << 16, layers_per_shard=1)
    metadata = {"format": "kvlingua", "format_version": "1", "heads": f"0-{1 << 16}", "layers": "0-6000"}
    metadata |= {"namespace": giant.json().decode(), "chain": "0", "first_token": "0", "header_checksum": "0"}
    text = json.dumps({"__metadata__": metadata}, sort_keys=True, separators=(",", ":"))
    header = with_header(text.encode(), b"")
    with pytest.raises(ContainerError, match="786432000 runs of bytes"):  # else it would prove nothing
        parse_header(header, len(header) + 64)
    hit = cache.lookup(namespace(), TOKENS)
    path = root / list(hit.keys(0, 6))[2]
    path.write_bytes(header + path.read_bytes()[len(header) :])
    tracemalloc.start()
    try:
        with pytest.raises(LoadError, match="1 of 6 objects are damaged") as refused:
            cache.load(hit, Cache(namespace(), 96).view(), 0, 96)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.__cause__.reason == "identity"  # type: ignore[union-attr]
    assert not path.exists()
    assert cache.lookup(namespace(), TOKENS).tokens == 32


@pytest.mark.parametrize("thing", ["link", "file", "fifo", "another user's", "written by all"])
def test_a_namespace_that_is_no_private_folder_is_a_miss(root: Path, tmp_path: Path, thing: str) -> None:
    folder, elsewhere = root / namespace().digest, tmp_path / "elsewhere"
    folder.rename(elsewhere)
    if thing == "link":
        folder.symlink_to(elsewhere)
    elif thing == "file":
        folder.write_text("")
    elif thing == "fifo":
        os.mkfifo(folder)
    else:
        elsewhere.rename(folder)
        if thing == "written by all":
            folder.chmod(0o777)
        elif os.geteuid() == 0:
            os.chown(folder, NOBODY, -1)
        else:
            pytest.skip("giving files to another user needs root")
    with KVCache.open(f"file://{root}") as cache:
        assert cache.lookup(namespace(), TOKENS).tokens == 0
        handle = store_all(cache, first=7)
        assert isinstance(handle.error, StoreError)
        assert str(folder) in str(handle.error)
        assert cache.lookup(namespace(model_config={"other": 1}), TOKENS).tokens == 0
    if thing == "link":
        assert len(list(elsewhere.iterdir())) == 7, "something was written through the link"


@pytest.mark.parametrize("thing", ["link", "another user's", "written by all", "written by the group"])
def test_a_root_that_is_no_private_folder_is_refused(root: Path, tmp_path: Path, thing: str) -> None:
    if thing == "link":
        root.rename(tmp_path / "elsewhere")
        root.symlink_to(tmp_path / "elsewhere")
    elif thing == "another user's":
        if os.geteuid() != 0:
            pytest.skip("giving files to another user needs root")
        os.chown(root, NOBODY, -1)
    else:
        root.chmod(0o777 if thing == "written by all" else 0o770)
    with KVCache.open(f"file://{root}") as cache:
        with pytest.raises(StoreError, match="expected a"):
            cache.lookup(namespace(), TOKENS)
        assert isinstance(store_all(cache).error, StoreError)


@pytest.mark.parametrize("thing", ["link", "fifo", "folder", "garbage", "empty", "huge", "lie"])
def test_the_account_is_not_trusted(root: Path, tmp_path: Path, thing: str) -> None:
    usage = root / ".usage"
    usage.unlink()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    if thing == "link":
        usage.symlink_to(victim)
    elif thing == "fifo":
        os.mkfifo(usage)
    elif thing == "folder":
        usage.mkdir()
    elif thing == "huge":
        huge(usage)
    else:
        usage.write_bytes({"garbage": b"\xff" * 100, "empty": b"", "lie": b"9" * 20}[thing])
    with KVCache.open(f"file://{root}") as cache:
        assert cache.lookup(namespace(), TOKENS).tokens == 96
        cache.load(cache.lookup(namespace(), TOKENS), Cache(namespace(), 96).view(), 0, 96)
        handle = store_all(cache, first=7)
        assert (handle.error is None) == (thing in ("garbage", "empty", "huge", "lie"))
    assert victim.read_text() == "untouched"
    if thing in ("garbage", "empty", "lie"):
        assert int(usage.read_bytes()[:20]) == sum(path.stat().st_size for path in root.glob("*/*"))


def test_garbage_beside_the_objects_is_passed_over(cache: KVCache, root: Path) -> None:
    folder = root / namespace().digest
    for place in (root, folder):
        for name in (b"\xff\xfe", b".tmp-", b"x" * 255, b" ", b"..safetensors", b"namespace.json.bak"):
            (place / os.fsdecode(name)).write_bytes(os.urandom(100))
        (place / "deep").mkdir()
        os.mkfifo(place / ".tmp-other-1-1")
    for number in range(2000):
        (folder / f"{number:064x}.safetensors").write_bytes(b"")
    (root / ("0" * 64)).mkdir(mode=0o700)
    (root / ("0" * 64) / "namespace.json").write_text('{"not": "a namespace"}')
    (root / ("1" * 64)).write_text("no folder")
    assert cache.lookup(namespace(), TOKENS).tokens == 96
    cache.load(cache.lookup(namespace(), TOKENS), Cache(namespace(), 96).view(), 0, 96)
    assert store_all(cache, first=7).error is None
    found = cache.nearest(namespace(compute_dtype="float16"))
    assert found is not None
    assert found[0] == namespace()
    assert (folder / "deep").is_dir()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100000, b"\xff" * 100, b'{"a": 1e999}', b"x" * 300000])
def test_a_namespace_file_with_anything_in_it(root: Path, content: bytes) -> None:
    other = root / ("a" * 64)
    other.mkdir(mode=0o700)
    (other / "namespace.json").write_bytes(content)
    with KVCache.open(f"file://{root}") as cache:
        assert cache.nearest(namespace()) is None
        assert cache.nearest(namespace(lora="x")) is not None


def test_a_namespace_under_another_ones_name_is_not_believed(root: Path) -> None:
    other = root / ("a" * 64)
    other.mkdir(mode=0o700)
    (other / "namespace.json").write_bytes(namespace(lora="x").json())
    with KVCache.open(f"file://{root}") as cache:
        assert cache.nearest(namespace()) is None


def test_files_and_folders_are_private(root: Path) -> None:
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / namespace().digest).stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in [root / ".usage", *root.glob("*/*")]} == {0o600}


def test_parents_that_are_made_are_private_too(tmp_path: Path) -> None:
    with KVCache.open(f"file://{tmp_path}/a/b/store") as cache:
        store_all(cache)
    assert {stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("a", "a/b", "a/b/store")} == {0o700}
