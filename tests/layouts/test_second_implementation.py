"""docs/format/ is enough to read what kvlingua stores and what engines keep: a second implementation does it."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kvlingua.layouts import FORMATS
from tests.golden import make, make_layouts
from tests.layouts import second_implementation as second

SOURCE = Path(second.__file__)
OBJECTS = sorted(make.FOLDER.glob("*.safetensors"))
DUMPS = sorted(make_layouts.FOLDER.glob("*.safetensors"))
FROZEN = "0d32a8306c1188b57b8b5780b0e18015d851187f947f2bb671a0f104b20a0b90"


def test_it_is_short_and_on_its_own() -> None:
    tree = ast.parse(SOURCE.read_text("utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported = {name.split(".")[0] for name in names}
    assert imported <= {"__future__", "hashlib", "itertools", "json", "math", "pathlib", "re", "struct", "typing"} | {
        "numpy",
        "xxhash",
    }
    assert len(SOURCE.read_text("utf-8").splitlines()) <= 150


def test_there_are_golden_files_for_everything() -> None:
    assert {path.stem for path in OBJECTS} == set(make.OBJECTS)
    assert {path.stem.rpartition("-")[0] for path in DUMPS} == set(FORMATS)


def expected(dtype: str, plane: int, shape: tuple[int, ...], heads: range, layers: range) -> np.ndarray:
    """The golden content of a tensor [head, layer, token, dim], as float32."""
    rows, deep = (heads, layers) if shape[0] == len(heads) else (range(shape[0]), layers)
    numbers = [
        [[[make.value(plane, h, n, t, d) for d in range(shape[3])] for t in range(shape[2])] for n in deep]
        for h in rows
    ]
    if not dtype.startswith("float8"):
        return np.array(numbers, np.float32)
    codes = torch.tensor(numbers, dtype=torch.int64) % 112
    return codes.to(torch.uint8).view(getattr(torch, dtype)).float().numpy()


@pytest.mark.parametrize("path", OBJECTS, ids=[path.stem for path in OBJECTS])
def test_it_reads_every_golden_object(path: Path) -> None:
    golden = make.OBJECTS[path.stem]
    metadata, found = second.read_object(path)
    extent, geometry = golden.extent, golden.namespace.geometry
    assert metadata["namespace_digest"] == golden.namespace.digest
    heads, layers = range(extent.head_start, extent.head_stop), range(extent.layer_start, extent.layer_stop)
    assert (metadata["heads"], metadata["layers"]) == tuple(f"{part.start}-{part.stop}" for part in (heads, layers))
    tensors = {}
    for index, plane in enumerate(geometry.planes):
        shape = (
            1 if plane.per == "tensor" else extent.heads,
            extent.layers,
            golden.namespace.chunk_tokens if plane.per == "token" else 1,
            plane.width,
        )
        tensors[plane.name] = expected(plane.dtype, index, shape, heads, layers)
    assert set(found) == {plane.name for plane in geometry.numbers}
    for name, values in found.items():
        wanted = tensors[name] * tensors.get(f"{name}_scale", 1)
        assert values.shape == wanted.shape
        assert np.array_equal(values, wanted)


def test_it_computes_every_golden_chain() -> None:
    keys = json.loads(make.KEYS.read_text("utf-8"))
    for case in keys["chains"]:
        assert second.chain(case["tokens"], case["chunk_tokens"], bytes.fromhex(case["seed"])) == case["digests"]
    assert hashlib.sha256(keys["namespace"]["json"].encode()).hexdigest() == keys["namespace"]["digest"]


@pytest.mark.parametrize("place", [8, 100, -1])
def test_it_notices_a_spoiled_object(place: int, tmp_path: Path) -> None:
    spoiled = bytearray(OBJECTS[0].read_bytes())
    spoiled[place] ^= 1
    path = tmp_path / "spoiled.safetensors"
    path.write_bytes(spoiled)
    with pytest.raises((AssertionError, ValueError, KeyError)):
        second.read_object(path)


@pytest.mark.parametrize("path", DUMPS, ids=[path.stem for path in DUMPS])
def test_it_reads_every_engines_memory(path: Path) -> None:
    """Every number is that of its place, as the formula of the golden dumps has it."""
    cache, planes = second.read_cache(path)
    assert FORMATS[cache["layout"]].spec == cache["spec"]
    widest = max(plane["width"] for plane in cache["planes"])
    (first_head, last_head), (first_layer, last_layer) = cache["extent"]["heads"], cache["extent"]["layers"]
    tokens = cache["stop"] - cache["start"]
    for index, plane in enumerate(cache["planes"]):
        layer, head, token, dim = np.ogrid[first_layer:last_layer, first_head:last_head, :tokens, : plane["width"]]
        place = ((index * cache["layers"] + layer) * cache["kv_heads"] + head) * tokens + token
        wanted = (place * widest + dim) % make_layouts.MODULUS[plane["itemsize"]]
        assert np.array_equal(planes[plane["name"]], wanted), plane["name"]


def test_the_dumps_are_frozen_and_what_the_engines_definitions_give() -> None:
    """A new row of the table adds files, and so changes the digest; those that are there stay as they are."""
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in DUMPS)
    assert hashlib.sha256(digests.encode()).hexdigest() == FROZEN
    made = dict(make_layouts.dumps())
    assert {path.stem for path in DUMPS} == set(made)
    for path in DUMPS:
        assert path.read_bytes() == made[path.stem], path.stem
