"""Which files a model's weights are read from, and folders that are none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.model import ModelDescription, describe_model
from kvlingua.common.identity.weight_files import INDEX
from tests.common.samples import model_folder


def describe(path: Path, **options: Any) -> ModelDescription:
    return describe_model(path, **({"compute_dtype": "float32", "kv_dtype": "float32"} | options))


def indexed(path: Path, names: object, *present: str) -> Path:
    """A folder with an index that names files, and the files that are there."""
    (model_folder(path) / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for name in present:
        (path / name).write_bytes(name.encode())
    return path


def test_the_files_an_index_names(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    path = indexed(tmp_path, {"a": names[1], "b": names[0], "c": names[1]}, *names)
    assert list(describe(path).weight_files) == names
    (path / INDEX).unlink()
    os.mkfifo(path / INDEX)
    with pytest.raises(UnsupportedError, match=r"can't be read: .*it is no regular file"):
        describe(path)


@pytest.mark.parametrize(
    ("names", "present"),
    [
        ({"a": "one.safetensors"}, []),
        ({"a": "one.safetensors"}, ["one.safetensors", "two.safetensors"]),
        ({"a": "one.safetensors"}, ["one.safetensors", "model.safetensors"]),
        ({"a": "../one.safetensors"}, ["one.safetensors"]),
        ({"a": "one.bin"}, ["one.bin"]),
        ({"a": 1}, []),
        ({}, []),
        ([], []),
    ],
    ids=str,
)
def test_ambiguous_weight_files_are_refused(names: object, present: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        describe(indexed(tmp_path, names, *present))
    assert refused.value.reason == "weight_files"


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "model")
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="adapter"):
        describe(path)
    (path / "adapter_config.json").unlink()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="only safetensors"):
        describe(path)
    for text in (b"", b"[]", b"\xff", b'{"a":' * 1000, b'{"a":NaN}', b" " * (5 << 20)):
        (path / "config.json").write_bytes(text)
        with pytest.raises(UnsupportedError) as refused:
            describe(path)
        assert refused.value.reason == "model_files"
    (path / "config.json").unlink()
    with pytest.raises(UnsupportedError, match="can't be read"):
        describe(path)
    os.mkfifo(path / "config.json")
    with pytest.raises(UnsupportedError, match=r"config\.json can't be read: it is no regular file"):
        describe(path)
    for nowhere in (tmp_path / "absent", "", "no/such-model"):
        with pytest.raises(UnsupportedError, match="neither a folder nor in the local hub cache"):
            describe(Path(nowhere) if nowhere else nowhere)  # type: ignore[arg-type]


def test_a_hub_id_agrees_with_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub lays it out: names that link to blobs, found without the network."""
    import huggingface_hub.constants

    repository, commit = tmp_path / "models--some--model", "0" * 40
    snapshot, plain = repository / "snapshots" / commit, model_folder(tmp_path / "plain")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (plain / name).rename(repository / "blobs" / (f"{number}" * 40))
        (snapshot / name).symlink_to("../../blobs/" + f"{number}" * 40)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    by_id, by_path = describe("some/model"), describe(snapshot)  # type: ignore[arg-type]
    assert list(by_id.weight_files) == list(by_path.weight_files) == ["model.safetensors"]
    namespaces = [each.namespace("ab" * 32, chunk_tokens=64) for each in (by_id, by_path)]
    assert namespaces[0] == namespaces[1]
    with pytest.raises(UnsupportedError, match="at revision v2 is neither"):
        describe("some/model", revision="v2")  # type: ignore[arg-type]
