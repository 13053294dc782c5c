"""The command `kvlingua`, as a person runs it: a process, its output and its exit status."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo.job import MODEL
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config
from kvlingua.common.identity.namespace import Namespace
from tests import spoil
from tests.common.kv import CHUNK, Cache, namespace

TOKENS = list(range(100))
CHUNKS = len(TOKENS) // CHUNK


def kvlingua(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("KVLINGUA_")}
    command = [str(Path(sys.executable).with_name("kvlingua")), *arguments]
    return subprocess.run(
        command, env=variables | environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def fill(root: Path, one: Namespace) -> None:
    with KVCache.open(Config(url=root.as_uri())) as cache:
        handle = cache.store(one, TOKENS, Cache(one, len(TOKENS), seed=1).view(), 0, len(TOKENS))
        assert handle.committed.wait(10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of two namespaces that differ in the dtype alone."""
    for dtype in ("float32", "bfloat16"):
        fill(tmp_path / "store", namespace(compute_dtype=dtype, kv_dtype=dtype))
    return tmp_path / "store"


def test_help_names_every_command() -> None:
    done = kvlingua("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "inspect", "doctor", "purge"))


def test_inspect_says_what_is_stored(root: Path) -> None:
    for target in (str(root), root.as_uri()):
        done = kvlingua("inspect", target)
        assert done.returncode == 0, done.stderr
        assert "2 namespaces" in done.stdout
        assert done.stdout.count(f"{CHUNKS} chunks, {CHUNKS * CHUNK} tokens, {CHUNKS} objects") == 2
        assert "llama, 3 layers x 4 kv heads x (k 8 + v 12), bfloat16, chunks" in done.stdout


def test_inspect_verify_finds_every_damaged_object(root: Path) -> None:
    right = kvlingua("inspect", "--verify", str(root))
    assert (right.returncode, f"verified {2 * CHUNKS} objects: all right" in right.stdout) == (0, True)
    damaged = spoil.flip_byte(root)
    wrong = kvlingua("inspect", "--verify", str(root))
    assert (wrong.returncode, f"{damaged} damaged" in wrong.stdout) == (1, True)


def test_inspect_verify_finds_objects_under_anothers_name(root: Path) -> None:
    spoil.swap(root)
    done = kvlingua("inspect", "--verify", str(root))
    assert done.returncode == 1
    assert "renamed" in done.stdout


def test_inspect_reads_one_object(root: Path) -> None:
    path = spoil.objects(root)[0]
    assert "checksums right" in kvlingua("inspect", str(path)).stdout
    spoil.garbage(root)
    done = kvlingua("inspect", str(path))
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1


def test_a_store_that_is_not_there_is_one_clear_line_and_isnt_made(tmp_path: Path) -> None:
    for command in ("inspect", "purge"):
        done = kvlingua(command, str(tmp_path / "none"))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "there is no store at" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_wrong_setting_is_one_clear_line(tmp_path: Path) -> None:
    done = kvlingua("doctor", KVLINGUA_CHUNKTOKENS="32")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "KVLINGUA_CHUNKTOKENS" in done.stderr
    assert "chunk_tokens" in done.stderr


def test_doctor_names_the_field_in_which_two_namespaces_differ(root: Path) -> None:
    done = kvlingua("doctor", str(root), KVLINGUA_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert "kv_dtype: bfloat16 here, float32 there" in done.stdout
    assert "fingerprint" not in done.stdout.partition("why nothing hits")[2]
    assert "threads = 2  (variable KVLINGUA_THREADS)" in done.stdout
    assert "kernels:" in done.stdout
    assert "transformers" in done.stdout


def test_doctor_compares_a_model_with_the_store(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    fill(tmp_path / "store", namespace())
    done = kvlingua(
        "doctor", str(tmp_path / "store"), "--model", str(model), "--dtype", "bfloat16", XDG_CACHE_HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert f"{model} in bfloat16 is namespace" in done.stdout
    assert "kv_dtype: bfloat16 here, float32 there" in done.stdout
    assert "layers: 4 here, 3 there" in done.stdout


def test_doctor_says_why_a_model_has_no_fingerprint(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "kvlingua" / "fingerprints"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    done = kvlingua(
        "doctor", str(root), "--model", str(MODEL), "--dtype", "float32", XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    assert done.returncode == 2
    assert done.stderr == f"kvlingua doctor: {cache} may be written by others: chmod 700, or set fingerprint_dir\n"


def test_what_the_system_refuses_is_one_clear_line() -> None:
    done = kvlingua("inspect", "x" * 300)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "File name too long" in done.stderr


def test_an_empty_argument_is_refused(root: Path) -> None:
    """A variable that wasn't set, in somebody's script: it means neither the configured store nor everything."""
    for arguments in (
        ("purge", "", "--yes"),
        ("purge", str(root), "--namespace", "", "--yes"),
        ("purge", str(root), "--unused-for", "", "--yes"),
        ("inspect", ""),
        ("doctor", ""),
        ("doctor", "--model", "", "--dtype", "float32"),
    ):
        done = kvlingua(*arguments, KVLINGUA_URL=root.as_uri())
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), arguments
        assert "''" in done.stderr or "empty one" in done.stderr
    assert len(spoil.objects(root)) == 2 * CHUNKS


@pytest.mark.parametrize("command", ["inspect", "purge", "doctor"])
def test_a_path_that_leads_nowhere_is_one_clear_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    loop = str(tmp_path / "one")
    refusals = [kvlingua(command, path) for path in (loop, "~nosuch/x", "file://" + loop, "http://[")]
    refusals += [kvlingua(command, KVLINGUA_URL=url) for url in ("~nosuch/x", loop, "http://[", "nosuch://")]
    for done in refusals:
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert done.stderr.startswith(f"kvlingua {command}: ")


@pytest.mark.parametrize("command", ["inspect", "purge", "doctor"])
def test_a_folder_of_other_things_is_no_store(command: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    options = ["--verify"] if command == "inspect" else []
    done = kvlingua(command, str(tmp_path), *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is no store, it holds other things" in done.stderr
    assert "all right" not in done.stdout


def test_a_store_that_is_empty_or_not_made_yet_is_no_illness(tmp_path: Path) -> None:
    none = (tmp_path / "none").as_uri()
    done = kvlingua("doctor", KVLINGUA_URL=none)
    assert (done.returncode, done.stderr) == (0, "")
    assert "there is no store at" in done.stdout
    (tmp_path / "empty").mkdir(mode=0o700)
    done = kvlingua("inspect", "--verify", str(tmp_path / "empty"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to verify: the store is empty" in done.stdout


def test_doctor_tells_of_the_model_whatever_the_store_is(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    asked = ("--model", str(model), "--dtype", "float32")
    for target, status in (((str(tmp_path / "none"),), 2), ((), 0)):
        done = kvlingua(
            "doctor", *target, *asked, XDG_CACHE_HOME=str(tmp_path), KVLINGUA_URL=(tmp_path / "none").as_uri()
        )
        assert done.returncode == status
        assert f"{model} in float32 is namespace" in done.stdout
        assert ("there is no store at" in done.stderr) == (status == 2)
    (model / "config.json").write_text("[]")
    done = kvlingua("doctor", *asked, KVLINGUA_URL=(tmp_path / "none").as_uri())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "config.json is not a JSON object" in done.stderr


def test_inspect_verify_finds_namespaces_without_their_json(root: Path) -> None:
    first, second = sorted(path.name for path in root.iterdir() if path.is_dir())
    (root / first / "namespace.json").write_bytes(b"{}")
    (root / second / "namespace.json").unlink()
    done = kvlingua("inspect", "--verify", str(root))
    assert (done.returncode, "all right" in done.stdout) == (1, False)
    assert f"{first}/namespace.json: not a namespace" in done.stdout
    assert f"{second}/namespace.json: it is missing" in done.stdout
    assert f"verified {2 * CHUNKS} objects: 0 damaged, and 2 namespace.json missing or damaged" in done.stdout


def test_purge_asks_before_it_removes_and_then_removes_everything(root: Path) -> None:
    refused = kvlingua("purge", str(root))
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert len(spoil.objects(root)) == 2 * CHUNKS
    done = kvlingua("purge", "--yes", str(root))
    assert done.returncode == 0, done.stderr
    assert f"removed {2 * CHUNKS + 2} objects" in done.stdout  # with the two namespaces' JSON
    assert spoil.objects(root) == []


def test_purge_takes_one_namespace_or_what_is_old(root: Path) -> None:
    digest = namespace(compute_dtype="bfloat16", kv_dtype="bfloat16").digest
    assert kvlingua("purge", "--yes", "--namespace", digest[:12], str(root)).returncode == 0
    assert {path.parent.name for path in spoil.objects(root)} == {namespace().digest}
    assert "nothing to remove" in kvlingua("purge", "--yes", "--unused-for", "1h", str(root)).stdout
    for start in ("XYZ", digest[:12].upper(), digest + "0", "../" + digest):
        wrong = kvlingua("purge", "--yes", "--namespace", start, str(root))
        assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
        assert "--namespace takes 1 to 64 lower-case hexadecimal digits" in wrong.stderr
        assert f"not '{start}'" in wrong.stderr
    assert len(spoil.objects(root)) == CHUNKS
    wrong = kvlingua("purge", "--yes", "--unused-for", "soon", str(root))
    assert (wrong.returncode, "12h" in wrong.stderr) == (2, True)
