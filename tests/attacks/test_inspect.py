"""`kvlingua inspect` on files that claim to be large objects: refused, in a process that may not take much memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlingua.common.container import Container
from kvlingua.common.identity.keys import object_key
from kvlingua.layouts.geometry import Extent
from tests.common.samples import namespace, stored

MEMORY = 1 << 30  # of addresses; python and what it imports take a part of it
PROGRAM = f"""
import resource, sys
from kvlingua.common.cli import main
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
sys.exit(main(sys.argv[1:]))
"""
DIGEST = b"\xab" * 32
SMALL = Container(namespace(), Extent(0, 4, 0, 3))
LARGE = Container(
    namespace(layers=1, kv_heads=1, layers_per_shard=1, planes={"k": 1 << 14, "v": 1 << 14}, chunk_tokens=1 << 15),
    Extent(0, 1, 0, 1),
)


def sparse(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def forged(path: Path) -> None:
    """A header without a fault, of an object that is twice as large as the memory there is."""
    head, template = bytearray(LARGE.template.data), LARGE.template
    head[template.places["chain"]] = DIGEST.hex().encode()
    head[template.places["header_checksum"]] = template.checksum(memoryview(head))
    assert LARGE.object_bytes >= 2 * MEMORY
    sparse(path, bytes(head), LARGE.object_bytes)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "6 GiB of nothing": (lambda path: sparse(path, b"", 6 << 30), "data that begins at byte 8"),
    "8 EiB of header": (lambda path: sparse(path, b"\xff" * 8, 1 << 40), "a header of"),
    "a header for more than there is": (forged, "plane k is damaged"),
    "a small object's header": (lambda path: sparse(path, bytes(stored(SMALL)[0]), 6 << 30), "bytes follow from"),
    "garbage": (lambda path: path.write_bytes(b"\x38" + bytes(7) + os.urandom(5000)), "not JSON"),
    "truncated": (lambda path: path.write_bytes(stored(SMALL)[0][:-1]), "bytes follow from"),
    "empty": (lambda path: path.write_bytes(b""), "can't hold a header"),
}


def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "inspect", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_with_one_line(tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE[kind]
    container = LARGE if make is forged else SMALL
    path = tmp_path / "store" / object_key(container.namespace.digest, DIGEST, container.extent)
    path.parent.mkdir(parents=True, mode=0o700)
    make(path)
    path.chmod(0o600)
    (tmp_path / "store").chmod(0o700)
    alone = inspect(str(path))
    assert (alone.returncode, alone.stderr, len(alone.stdout.splitlines())) == (1, "", 1)
    assert reason in alone.stdout
    within = inspect("--verify", str(tmp_path / "store"))
    assert (within.returncode, within.stderr) == (1, "")
    assert reason in within.stdout
    assert "verified 1 objects: 1 damaged" in within.stdout


def test_the_same_process_accepts_an_object(tmp_path: Path) -> None:
    """Else the refusals above would prove nothing."""
    (tmp_path / "one.safetensors").write_bytes(stored(SMALL)[0])
    done = inspect(str(tmp_path / "one.safetensors"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "checksums right" in done.stdout


def test_one_bit_in_any_piece_is_found(tmp_path: Path) -> None:
    """An object of several pieces, and shards of several runs."""
    container = Container(
        namespace(
            layers=4, layers_per_shard=2, kv_heads=4, heads_per_shard=2, planes={"k": 512, "v": 640}, chunk_tokens=256
        ),
        Extent(0, 4, 0, 4),
    )
    right, path = stored(container)[0], tmp_path / "one.safetensors"
    path.write_bytes(right)
    assert inspect(str(path)).returncode == 0
    for place in (container.header_bytes, len(right) // 2, len(right) - 1):
        right[place] ^= 1
        path.write_bytes(right)
        assert "checksum" in inspect(str(path)).stdout
        right[place] ^= 1
