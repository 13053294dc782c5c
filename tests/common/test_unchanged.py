"""Weights that an engine may have read before they were exchanged are refused, and no others."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.identity.unchanged import check_unchanged
from tests.common.samples import model_folder


def described(path: Path) -> ModelDescription:
    return describe_model(path, compute_dtype="float32", kv_dtype="float32")


def began() -> int:
    """The start of an engine: what happened before is older, what happens next is newer."""
    time.sleep(0.1)
    now = time.time_ns()
    time.sleep(0.1)
    return now


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """`top/current/llama`, where `current` is a link to `v1`, beside which there is a `v2`; and a link of a link."""
    for version in ("v1", "v2"):
        model_folder(tmp_path / "top" / version / "llama", weights=version.encode())
    (tmp_path / "top" / "current").symlink_to("v1")
    (tmp_path / "top" / "far").symlink_to(tmp_path / "top" / "v1" / ".." / "current")
    return tmp_path / "top"


def flip(top: Path) -> None:
    (top / "new").symlink_to("v2")
    (top / "new").replace(top / "current")


def rename(top: Path) -> None:
    (top / "v1").rename(top / "old")
    (top / "v2").rename(top / "v1")


def bring(top: Path) -> None:
    """From another folder, into a place that was made free."""
    (top / "aside").mkdir()
    (top / "v1").rename(top / "aside" / "v1")
    (top / "v2").rename(top / "v1")


@pytest.mark.parametrize("way", ["current", "far", "v1/../current"])
@pytest.mark.parametrize("exchange", [flip, rename, bring])
def test_what_leads_to_the_model_is_watched(deployed: Path, way: str, exchange: Callable[[Path], None]) -> None:
    description = described(deployed / way / "llama")
    start = began()
    check_unchanged(description, start)
    exchange(deployed)
    with pytest.raises(UnsupportedError, match="changed after this process began") as refused:
        check_unchanged(description, start)
    assert refused.value.reason == "weights_changed"
    check_unchanged(description, began())


def test_a_path_given_from_the_working_directory_is_watched_too(
    deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(deployed)
    description = described(Path("current/llama"))
    start = began()
    check_unchanged(description, start)
    flip(deployed)
    with pytest.raises(UnsupportedError, match="current changed"):
        check_unchanged(description, start)


def test_weights_behind_a_link_are_watched_on_their_own_way(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "model")
    (tmp_path / "blobs-1").mkdir()
    (path / "model.safetensors").rename(tmp_path / "blobs-1" / "blob")
    (tmp_path / "blobs").symlink_to("blobs-1")
    (path / "model.safetensors").symlink_to("../blobs/blob")
    description = described(path)
    start = began()
    check_unchanged(description, start)
    shutil.copytree(tmp_path / "blobs-1", tmp_path / "blobs-2")
    (tmp_path / "new").symlink_to("blobs-2")
    (tmp_path / "new").replace(tmp_path / "blobs")
    with pytest.raises(UnsupportedError, match="blobs changed"):
        check_unchanged(description, start)


def test_what_happens_around_a_model_is_no_change(deployed: Path) -> None:
    """Models that come and go beside it, files made in its folders, permissions; and what an overlay file system does
    to a folder that it copies: a new ctime under the old mtime, in a folder that stays as it was."""
    description = described(deployed / "current" / "llama")
    start = began()
    before = deployed.stat()
    (deployed / "v1").chmod(0o700)
    os.utime(deployed / "v1", ns=(before.st_atime_ns, before.st_mtime_ns))
    check_unchanged(description, start)
    (deployed / "v1" / "other").mkdir()
    shutil.copytree(deployed / "v1" / "llama", deployed / "v1" / "mistral")
    (deployed / "v1" / "llama" / "notes.txt").write_text("harmless")
    model_folder(deployed / "v3" / "llama")
    subprocess.run(["mv", deployed / "v3", deployed / "v4"], check=True)
    shutil.rmtree(deployed / "v2")
    (deployed.parent / "busy").touch()
    check_unchanged(description, start)


def test_links_without_end_are_refused(tmp_path: Path) -> None:
    description = described(model_folder(tmp_path / "model"))
    start = began()
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "model").symlink_to("model")
    with pytest.raises(UnsupportedError, match="too many links"):
        check_unchanged(description, start + 3600 * 10**9)


def test_links_and_configuration_are_watched_too(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "model")
    (path / "model.safetensors").rename(tmp_path / "blob")
    (path / "model.safetensors").symlink_to(tmp_path / "blob")
    description = described(path)
    time.sleep(0.1)
    start = time.time_ns()
    check_unchanged(description, start)
    time.sleep(0.1)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(tmp_path / "blob")
    with pytest.raises(UnsupportedError, match=r"model\.safetensors changed"):
        check_unchanged(description, start)
    check_unchanged(description, time.time_ns())
    start = time.time_ns()
    time.sleep(0.1)
    os.utime(path / "config.json")
    with pytest.raises(UnsupportedError, match=r"config\.json changed"):
        check_unchanged(description, start)


def test_the_index_is_watched_too(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "model")
    (path / "model.safetensors").rename(path / "one.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors"}}')
    description = described(path)
    time.sleep(0.1)
    start = time.time_ns()
    check_unchanged(description, start)
    time.sleep(0.1)
    os.utime(index)
    with pytest.raises(UnsupportedError, match=r"index\.json changed"):
        check_unchanged(description, start)


def test_without_proc_nothing_is_proved(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="/proc"):
        check_unchanged(described(model_folder(tmp_path / "model")), None)
