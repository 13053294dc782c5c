"""The golden files are what we write, and what others read in them is what we meant."""

import hashlib
import json
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
import xxhash

from kvlingua.common.container import Container, parse_header
from kvlingua.common.errors import ContainerError
from kvlingua.common.identity.chain import chain_digests, request_seed
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import Extent
from tests.golden.make import CHUNK, FOLDER, KEYS, OBJECTS, TOKENS, golden_keys, golden_object

GQA = OBJECTS["gqa_bfloat16"]
# What is per head has no tokens, what is per tensor has neither heads nor tokens.
SHAPES: dict[str, dict[str, list[int]]] = {
    "gqa_bfloat16": {"k": [2, 3, 8, 4], "v": [2, 3, 8, 2]},
    "mla_bfloat16": {"latent": [1, 2, 8, 16], "rope": [1, 2, 8, 4]},
    "float32": {"k": [2, 1, 8, 4], "v": [2, 1, 8, 2]},
    "float16_partly_rotated": {"k": [4, 3, 8, 8], "v": [4, 3, 8, 8]},
    "float8_e4m3fn_scaled_per_token": {
        "k": [2, 3, 8, 4],
        "v": [2, 3, 8, 2],
        "k_scale": [2, 3, 8, 1],
        "v_scale": [2, 3, 8, 1],
    },
    "float8_e5m2_scaled_per_head": {
        "k": [2, 3, 8, 4],
        "v": [2, 3, 8, 2],
        "k_scale": [2, 3, 1, 1],
        "v_scale": [2, 3, 1, 1],
    },
    "float8_e4m3fnuz_scaled_per_tensor": {
        "k": [2, 3, 8, 4],
        "v": [2, 3, 8, 2],
        "k_scale": [1, 3, 1, 1],
        "v_scale": [1, 3, 1, 1],
    },
    "float8_e4m3fn_without_scales": {"k": [4, 2, 8, 4], "v": [4, 2, 8, 2]},
}
DTYPES = {
    "bfloat16": ("BF16", 2),
    "float16": ("F16", 2),
    "float32": ("F32", 4),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2": ("F8_E5M2", 1),
}
every_object = pytest.mark.parametrize("name", OBJECTS)


def bytes_of(name: str) -> bytes:
    return (FOLDER / f"{name}.safetensors").read_bytes()


def header_of(name: str) -> dict[str, Any]:
    data = bytes_of(name)
    header: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return header


def keys() -> Any:
    return json.loads(KEYS.read_text())


def test_keys_are_still_the_same() -> None:
    assert golden_keys() == keys()


@every_object
def test_objects_are_still_written_byte_for_byte(name: str) -> None:
    assert golden_object(OBJECTS[name]) == bytes_of(name)


def test_chain_is_the_written_rule() -> None:
    """Stated once more with hashlib and struct alone, from the golden file's numbers."""
    for case in keys()["chains"]:
        previous, size, found = bytes.fromhex(case["seed"]), case["chunk_tokens"], []
        for start in range(0, len(case["tokens"]) // size * size, size):
            tokens = struct.pack(f"<{size}I", *case["tokens"][start : start + size])
            previous = hashlib.sha256(previous + tokens).digest()
            found.append(previous.hex())
        assert found == case["digests"]


def test_chain_and_seed_are_sglangs() -> None:
    vectors = json.loads((FOLDER.parent / "sglang.json").read_text())
    for case in vectors["seeds"]:
        assert request_seed(case["extra_key"], case["cache_salt"]).hex() == case["seed"]
    for case in vectors["pages"]:
        digests = chain_digests(case["tokens"], case["page"], bytes.fromhex(case["seed"]))
        assert [digest.hex() for digest in digests] == case["digests"]


@every_object
def test_namespace_digest_is_sha256_of_its_json(name: str) -> None:
    metadata = header_of(name)["__metadata__"]
    stored = metadata["namespace"].encode()
    assert hashlib.sha256(stored).hexdigest() == metadata["namespace_digest"]
    assert Namespace.from_json(stored).digest == metadata["namespace_digest"]
    assert stored == OBJECTS[name].namespace.json()


def test_the_namespace_among_the_keys_is_that_of_the_object() -> None:
    stored = keys()["namespace"]
    assert hashlib.sha256(stored["json"].encode()).hexdigest() == stored["digest"] == GQA.namespace.digest


@every_object
def test_safetensors_reads_what_was_meant(name: str) -> None:
    """The numbers, restated with torch: whole ones below 256, as codes where an element is a byte."""
    tensors, extent = safetensors.torch.load_file(FOLDER / f"{name}.safetensors"), OBJECTS[name].extent
    assert {plane: list(tensor.shape) for plane, tensor in tensors.items()} == SHAPES[name]
    for number, (plane, (heads, layers, tokens, width)) in enumerate(SHAPES[name].items()):
        first_head = 0 if plane.endswith("_scale") and heads == 1 else extent.head_start
        expected = (
            (torch.arange(heads) + first_head)[:, None, None, None] * 61
            + (torch.arange(layers) + extent.layer_start)[None, :, None, None] * 29
            + torch.arange(tokens)[None, None, :, None] * 7
            + torch.arange(width)
            + 128 * number
        ) % 256
        tensor = tensors[plane]
        if tensor.dtype.itemsize == 1:
            assert torch.equal(tensor.view(torch.uint8).int(), (expected % 112).int())
            assert bool(tensor.float().isfinite().all())
        else:
            assert torch.equal(tensor.int(), expected.int())


@every_object
def test_any_reader_finds_the_layout(name: str) -> None:
    """With json and struct alone: the header's length, its alignment, and where the tensors lie."""
    data, header, dtype = bytes_of(name), header_of(name), OBJECTS[name].namespace.kv_dtype
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 64 == 0
    assert header.keys() == {"__metadata__", *SHAPES[name]}
    offset = 0
    for plane, shape in SHAPES[name].items():
        word, size = DTYPES["float32" if plane.endswith("_scale") else dtype]
        end = offset + shape[0] * shape[1] * shape[2] * shape[3] * size
        assert header[plane] == {"dtype": word, "shape": shape, "data_offsets": [offset, end]}
        assert offset % size == 0
        offset = end
    assert len(data) == 8 + length + offset
    assert header["__metadata__"]["format_version"] == "1"


@every_object
def test_checksums_are_the_written_rule(name: str) -> None:
    """Recomputed from docs/format/container.md with safetensors and xxhash alone.

    Shards are one head and two layers here, or three. Scales per tensor are cut by layers only.
    """
    data, tensors = bytes_of(name), safetensors.torch.load_file(FOLDER / f"{name}.safetensors")
    (length,) = struct.unpack("<Q", data[:8])
    metadata, extent = header_of(name)["__metadata__"], OBJECTS[name].extent
    step = OBJECTS[name].namespace.layers_per_shard
    cuts = [slice(start, start + step) for start in range(0, extent.layers, step)]
    for plane, tensor in tensors.items():
        shards = [tensor[head, layers] for head in range(tensor.shape[0]) for layers in cuts]
        sums = [xxhash.xxh3_128_hexdigest(shard.contiguous().view(torch.uint8).numpy()) for shard in shards]
        assert metadata[f"checksums_{plane}"] == "".join(sums)
    own = metadata["header_checksum"].encode()
    assert data.count(own) == 1
    assert xxhash.xxh3_128_hexdigest(data[: 8 + length].replace(own, b"0" * 32)) == own.decode()
    assert metadata["chain"] == keys()["chains"][0]["digests"][1]
    assert (metadata["heads"], metadata["layers"], metadata["first_token"]) == (
        f"{extent.head_start}-{extent.head_stop}",
        f"{extent.layer_start}-{extent.layer_stop}",
        "0000000008",
    )


@every_object
def test_object_is_verified_and_a_flipped_bit_is_not(name: str) -> None:
    data, golden = bytearray(bytes_of(name)), OBJECTS[name]
    digest = chain_digests(TOKENS, golden.namespace.chunk_tokens)[CHUNK]
    container = Container(golden.namespace, golden.extent)
    container.verify(memoryview(data), digest, golden.extent)
    parsed = parse_header(data, len(data))
    assert (parsed.container, parsed.chain, parsed.first_token) == (container, digest, 8)
    for place in range(len(data)):
        for bit in range(8) if golden is GQA else (place % 8,):
            data[place] ^= 1 << bit
            with pytest.raises(ContainerError):
                container.verify(memoryview(data), digest, golden.extent)
            if place < container.header_bytes and bit == place % 8:  # one bit of each byte: parsing takes longer
                with pytest.raises(ContainerError):
                    parse_header(data, len(data))
            data[place] ^= 1 << bit
    container.verify(memoryview(data), digest, golden.extent)


def test_readers_of_other_heads_share_the_scales_of_their_layers() -> None:
    """A scale for all heads is verified by whoever needs its layers, whichever heads they need, and by nobody else."""
    golden = OBJECTS["float8_e4m3fnuz_scaled_per_tensor"]
    data, container = (
        bytearray(bytes_of("float8_e4m3fnuz_scaled_per_tensor")),
        Container(golden.namespace, golden.extent),
    )
    digest = chain_digests(TOKENS, golden.namespace.chunk_tokens)[CHUNK]
    data[-4] ^= 1  # v's scale of the last layer, which is a shard of its own
    for heads in ((2, 3), (3, 4), (2, 4)):
        container.verify(memoryview(data), digest, Extent(*heads, 0, 2))
        with pytest.raises(ContainerError, match="plane v_scale is damaged in heads 2-4, layers 2-3"):
            container.verify(memoryview(data), digest, Extent(*heads, 2, 3))
