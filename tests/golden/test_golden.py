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
from tests.golden.make import (
    CHUNK,
    EXTENT,
    FOLDER,
    KEYS,
    NAMESPACE,
    OBJECT,
    TOKENS,
    golden_keys,
    golden_object,
)


def golden(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def test_keys_are_still_the_same() -> None:
    assert golden_keys() == golden(KEYS.name)


def test_object_is_still_written_byte_for_byte() -> None:
    assert golden_object() == OBJECT.read_bytes()


def test_chain_is_the_written_rule() -> None:
    """Stated once more with hashlib and struct alone, from the golden file's numbers."""
    for case in golden(KEYS.name)["chains"]:
        previous, size, found = bytes.fromhex(case["seed"]), case["chunk_tokens"], []
        for start in range(0, len(case["tokens"]) // size * size, size):
            tokens = struct.pack(f"<{size}I", *case["tokens"][start : start + size])
            previous = hashlib.sha256(previous + tokens).digest()
            found.append(previous.hex())
        assert found == case["digests"]


def test_chain_and_seed_are_sglangs() -> None:
    vectors = golden("sglang.json")
    for case in vectors["seeds"]:
        assert request_seed(case["extra_key"], case["cache_salt"]).hex() == case["seed"]
    for case in vectors["pages"]:
        digests = chain_digests(case["tokens"], case["page"], bytes.fromhex(case["seed"]))
        assert [digest.hex() for digest in digests] == case["digests"]


def test_namespace_digest_is_sha256_of_its_json() -> None:
    stored = golden(KEYS.name)["namespace"]
    assert hashlib.sha256(stored["json"].encode()).hexdigest() == stored["digest"]
    assert Namespace.from_json(stored["json"].encode()).digest == stored["digest"]


def test_safetensors_reads_what_was_meant() -> None:
    tensors = safetensors.torch.load_file(OBJECT)
    assert sorted(tensors) == ["k", "v"]
    heads, layers = torch.arange(2, 4)[:, None, None, None], torch.arange(3)[None, :, None, None]
    tokens = torch.arange(8)[None, None, :, None]
    for plane, width, offset in (("k", 4, 0), ("v", 2, 128)):
        expected = (heads * 61 + layers * 29 + tokens * 7 + torch.arange(width) + offset) % 256
        assert tensors[plane].dtype == torch.bfloat16
        assert torch.equal(tensors[plane].int(), expected.int())


def test_any_reader_finds_the_layout() -> None:
    """With json and struct alone: the header's length, its alignment, and where the tensors lie."""
    data = OBJECT.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert header["k"] == {"dtype": "BF16", "shape": [2, 3, 8, 4], "data_offsets": [0, 384]}
    assert header["v"] == {"dtype": "BF16", "shape": [2, 3, 8, 2], "data_offsets": [384, 576]}
    assert len(data) == 8 + length + 576
    assert header["__metadata__"]["namespace"] == NAMESPACE.json().decode()


def test_checksums_are_the_written_rule() -> None:
    """Recomputed from docs/format/container.md with safetensors and xxhash alone: shards of one head and two layers."""
    data, tensors = OBJECT.read_bytes(), safetensors.torch.load_file(OBJECT)
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    for plane in ("k", "v"):
        shards = [tensors[plane][head, layers] for head in range(2) for layers in (slice(0, 2), slice(2, 3))]
        sums = [xxhash.xxh3_128_hexdigest(shard.contiguous().view(torch.uint8).numpy()) for shard in shards]
        assert metadata[f"checksums_{plane}"] == "".join(sums)
    own = metadata["header_checksum"].encode()
    assert data.count(own) == 1
    assert xxhash.xxh3_128_hexdigest(data[: 8 + length].replace(own, b"0" * 32)) == own.decode()
    assert metadata["chain"] == golden(KEYS.name)["chains"][0]["digests"][1]
    assert (metadata["heads"], metadata["layers"], metadata["first_token"]) == ("2-4", "0-3", "0000000008")


def test_object_is_verified_and_a_flipped_bit_is_not() -> None:
    data = bytearray(OBJECT.read_bytes())
    digest = chain_digests(TOKENS, NAMESPACE.chunk_tokens)[CHUNK]
    container = Container(NAMESPACE, EXTENT)
    container.verify(memoryview(data), digest, EXTENT)
    parsed = parse_header(data, len(data))
    assert (parsed.container, parsed.chain, parsed.first_token) == (container, digest, 8)
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContainerError):
            container.verify(memoryview(data), digest, EXTENT)
        if bit < 8 * container.header_bytes and bit // 8 % 8 == bit % 8:  # one bit of each byte: parsing takes longer
            with pytest.raises(ContainerError):
                parse_header(data, len(data))
        data[bit // 8] ^= 1 << bit % 8
    container.verify(memoryview(data), digest, EXTENT)
