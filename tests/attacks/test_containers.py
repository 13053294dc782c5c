"""Hostile objects: whatever the bytes say, they are refused with a ContainerError, at once and in bounded memory."""

import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.container import Container, parse_header
from kvlingua.common.errors import ContainerError
from kvlingua.common.header import MAX_HEADER_BYTES, header_length
from kvlingua.layouts.geometry import Extent
from tests.attacks.forger import change, signed, with_header
from tests.common.samples import namespace, stored

CONTAINER = Container(namespace(), Extent(0, 4, 0, 3))
OBJECT, DIGEST = (bytes(part) for part in stored(CONTAINER))
HEAD = CONTAINER.header_bytes
DATA = OBJECT[HEAD:]
BOUND = 64 << 20
MEGABYTE = 1 << 20


def refused(data: bytes, *, size: int | None = None, reason: str | None = None) -> None:
    """Both readers refuse `data`: the one that predicts the header, and the one that doesn't."""
    tracemalloc.start()
    try:
        with pytest.raises(ContainerError) as parsed:
            parse_header(data, len(data) if size is None else size)
        with pytest.raises(ContainerError):
            CONTAINER.verify(memoryview(data), DIGEST, CONTAINER.extent)
        assert tracemalloc.get_traced_memory()[1] < BOUND
    finally:
        tracemalloc.stop()
    assert "\n" not in str(parsed.value)
    if reason is not None:
        assert parsed.value.reason == reason


def header() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(OBJECT[8:HEAD])
    return values


def test_the_forger_of_these_tests_can_write_a_right_object() -> None:
    """Else the refusals below would prove nothing."""
    assert signed(header(), DATA) == OBJECT
    assert parse_header(OBJECT, len(OBJECT)).container == CONTAINER
    CONTAINER.verify(memoryview(OBJECT), DIGEST, CONTAINER.extent)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, HEAD - 1, HEAD, HEAD + 1, len(OBJECT) - 1])
def test_truncated(length: int) -> None:
    refused(OBJECT[:length])


def test_truncated_head_of_a_whole_object() -> None:
    refused(OBJECT[: HEAD - 1], size=len(OBJECT), reason="truncated")


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (0, "header"),
        (2, "header"),
        (56, "header"),
        (HEAD, "header"),
        (HEAD - 8 - 64, "header"),
        (HEAD - 8 + 64, "header"),
        (MAX_HEADER_BYTES, "header"),
        (1 << 32, "header"),
        ((1 << 63) - 8, "header"),
        ((1 << 64) - 1, "header"),
        ((1 << 64) - 8, "header"),
    ],
)
def test_header_lengths_that_lie(length: int, reason: str) -> None:
    data = struct.pack("<Q", length) + OBJECT[8:]
    refused(data, reason=reason)
    refused(data + bytes(2 * MEGABYTE))


def test_a_length_beyond_the_object() -> None:
    with pytest.raises(ContainerError) as found:
        header_length(struct.pack("<Q", 4096 - 8), 1024)
    assert found.value.reason == "truncated"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"__metadata__":{}}',
        b'{"__metadata__":[]}',
        b'{"__metadata__":{"a":1}}',
        b'{"__metadata__":{"a":null}}',
        b"\xff\xfe",
        b'{"\xc3\x28":1}',
        b'{"a":' * 200_000,
        b"[" * 1_000_000,
        b"[" * 30 + b"]" * 30,
        b'{"a":"' + b"\\" * 900_000,
        b'{"a":"' + b'\\"' * 450_000,
        b'{"a":' + b"9" * 900_000 + b"}",
        b'{"a":1e' + b"9" * 900_000 + b"}",
        b"[" + b"{}," * 300_000 + b"{}]",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"\x00" * 64,
        b" " * 64,
        b'{"__metadata__":{"format":"pt"},"k":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
    ids=lambda text: repr(text[:20]) + f"x{len(text)}",
)
@pytest.mark.timeout(30)
def test_headers_that_are_none(text: bytes) -> None:
    refused(with_header(text, DATA))


K = CONTAINER.namespace.planes["k"] * 4 * 3 * 4 * 2
TENSORS = {
    "k and v overlap": change("v", "data_offsets", to=[K - 2, len(OBJECT) - HEAD - 2]),
    "v over k": change("v", "data_offsets", to=[0, len(OBJECT) - HEAD - K]),
    "a gap": change("v", "data_offsets", to=[K + 2, len(OBJECT) - HEAD]),
    "beyond the end": change("v", "data_offsets", to=[K, len(OBJECT)]),
    "far beyond": change("v", "data_offsets", to=[K, 1 << 53]),
    "backwards": change("k", "data_offsets", to=[K, 0]),
    "negative": change("k", "data_offsets", to=[-2, K - 2]),
    "bool": change("k", "data_offsets", to=[False, K]),
    "float": change("k", "data_offsets", to=[0.0, K]),
    "float that isn't integral": change("k", "data_offsets", to=[0.5, K]),
    "string": change("k", "data_offsets", to=["0", str(K)]),
    "three offsets": change("k", "data_offsets", to=[0, K, K]),
    "no offsets": change("k", "data_offsets", to=[]),
    "null offsets": change("k", "data_offsets", to=None),
    "another dtype of that size": change("k", "dtype", to="BF16"),
    "a wider dtype": change("k", "dtype", to="F32"),
    "no dtype": change("k", "dtype", to=None),
    "a transposed shape": change("k", "shape", to=[4, 3, 8, 4]),
    "a flat shape": change("k", "shape", to=[K // 2]),
    "a huge shape": change("k", "shape", to=[1 << 52] * 4),
    "a shape of zero": change("k", "shape", to=[4, 3, 4, 0]),
    "a bool in the shape": change("k", "shape", to=[4, 3, 4, True]),
    "a negative shape": change("k", "shape", to=[-4, -3, 4, 8]),
    "a third tensor": change("w", to={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "a tensor that isn't one": change("k", to=7),
    "another key": change("k", "more", to=1),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_lie(name: str) -> None:
    values = header()
    TENSORS[name](values)
    refused(signed(values, DATA))


METADATA = {
    "a missing field": lambda metadata: metadata.pop("chain"),
    "one more field": change("more", to="1"),
    "a list": change("heads", to=["0", "4"]),
    "a number": change("format_version", to=0),
    "another version": change("format_version", to="0"),
    "a huge version": change("format_version", to="9" * 100_000),
    "another format": change("format", to="pt"),
    "other heads": change("heads", to="0-2"),
    "other heads of that many": change("heads", to="1-5"),
    "heads of none": change("heads", to="4-4"),
    "heads backwards": change("heads", to="4-0"),
    "negative heads": change("heads", to="-4-0"),
    "huge heads": change("heads", to="0-999999"),
    "heads beyond a number": change("heads", to="0-" + "9" * 10_000),
    "other digits": change("heads", to="0-\u0664"),
    "layers off the grid": change("layers", to="0-1"),
    "a short chain": change("chain", to="ab" * 31),
    "an escaped chain": change("chain", to="AB" * 32),
    "no chain": change("chain", to=""),
    "a short position": change("first_token", to="4"),
    "a negative position": change("first_token", to="-000000004"),
    "a position inside a chunk": change("first_token", to="0000000005"),
    "other digits of a position": change("first_token", to="000000000\u0664"),
    "another namespace digest": change("namespace_digest", to="ab" * 32),
    "no namespace": change("namespace", to=""),
    "a namespace that isn't one": change("namespace", to="{}"),
    "a namespace of lists": change("namespace", to="[" * 100_000),
    "a namespace with white space": change("namespace", to=CONTAINER.namespace.json().decode() + " "),
    "half a character": change("namespace", to="\udc80"),
    "a longer checksum": change("checksums_k", to="0" * 1024),
    "no checksum": change("checksums_k", to=""),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_lies(name: str) -> None:
    values = header()
    METADATA[name](values["__metadata__"])
    if "\udc80" in values["__metadata__"]["namespace"]:
        refused(with_header(json.dumps(values).encode(), DATA))
    else:
        refused(signed(values, DATA))


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1 << 16, "kv_heads": 1 << 16, "layers_per_shard": 1, "heads_per_shard": 1},
        {
            "layers": 1 << 16,
            "layers_per_shard": 1 << 16,
            "kv_heads": 1 << 16,
            "planes": {"k": 1 << 16, "v": 1 << 16},
            "chunk_tokens": 1 << 16,
        },
        {"layers": 6000, "layers_per_shard": 1, "kv_heads": 1 << 16, "heads_per_shard": 1 << 16},
        {"layers": 2, "layers_per_shard": 1, "kv_heads": 1 << 15, "heads_per_shard": 1 << 15},
        {"layers": 1 << 60},
        {"kv_heads": 0},
        {"heads_per_shard": 0},
        {"layers_per_shard": -1},
        {"chunk_tokens": 0},
        {"planes": {"k": True, "v": 6}},
        {"planes": {f"p{number}": 1 for number in range(10_000)}},
        {"scales_policy": "token"},
        {"rope": {"rotary_dim": 1 << 60}},
    ],
    ids=str,
)
@pytest.mark.timeout(30)
def test_namespaces_with_sizes_that_lie(sizes: dict[str, int]) -> None:
    """A well-formed header of a model that can't be: nothing of its size is built."""
    values, metadata = header(), header()["__metadata__"]
    one = json.loads(metadata["namespace"]) | sizes
    values["__metadata__"]["namespace"] = json.dumps(one, sort_keys=True, separators=(",", ":"))
    values["__metadata__"]["heads"] = f"0-{min(one['kv_heads'], 999_999)}"
    values["__metadata__"]["layers"] = f"0-{min(one['layers'], 999_999)}"
    refused(signed(values, DATA))


def test_duplicate_keys() -> None:
    text = OBJECT[8:HEAD].rstrip(b" ")
    for once, twice in (
        (b'"k":{', b'"k":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"k":{'),
        (b'"heads":"0-4"', b'"heads":"0-2","heads":"0-4"'),
        (b'"dtype":"F16"', b'"dtype":"F16","dtype":"F16"'),
        (b'{"__metadata__"', b'{"__metadata__":{},"__metadata__"'),
    ):
        assert text.replace(once, twice, 1) != text
        refused(with_header(text.replace(once, twice, 1), DATA), reason="header")


def test_the_same_header_in_another_form() -> None:
    """What any JSON parser would take for the same is refused: there is one form."""
    text, values = OBJECT[8:HEAD].rstrip(b" "), header()
    for other in (
        b" " + text,
        text.replace(b":", b": "),
        text + b"\n",
        json.dumps(dict(reversed(values.items()))).encode(),
        text.replace(b'"k"', b'"\\u006b"'),
        b"\xef\xbb\xbf" + text,
    ):
        refused(with_header(other, DATA))
    refused(OBJECT[:HEAD].replace(b"  ", b" \t", 1) + OBJECT[HEAD:])
    longer = struct.pack("<Q", HEAD - 8 + 64) + OBJECT[8:HEAD] + b" " * 64 + OBJECT[HEAD:]
    refused(longer, reason="size")


def test_data_that_is_longer_or_shorter() -> None:
    for data in (OBJECT + b"\0", OBJECT + bytes(MEGABYTE), OBJECT[:-1], OBJECT[:HEAD]):
        refused(data, reason="size")


def test_checksums_under_a_right_header_checksum() -> None:
    """Only the reader of the data can notice; and it does."""
    values = header()
    for plane in ("k", "v"):
        sums = values["__metadata__"][f"checksums_{plane}"]
        values["__metadata__"][f"checksums_{plane}"] = sums[32:] + sums[:32]
        data = signed(values, DATA)
        assert parse_header(data, len(data)).chain == parse_header(OBJECT, len(OBJECT)).chain
        with pytest.raises(ContainerError, match="damaged"):
            CONTAINER.verify(memoryview(data), DIGEST, CONTAINER.extent)
        values = header()


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    for hostile in (data, with_header(data, DATA), OBJECT[:8] + data, OBJECT[:HEAD] + data):
        with pytest.raises(ContainerError):
            parse_header(hostile, len(hostile))
        with pytest.raises(ContainerError):
            CONTAINER.verify(memoryview(hostile), DIGEST, CONTAINER.extent)


@given(st.integers(0, len(OBJECT) - 1), st.integers(0, len(OBJECT)), st.binary(max_size=40))
def test_bytes_cut_out_and_put_in(start: int, length: int, inserted: bytes) -> None:
    hostile = OBJECT[:start] + inserted + OBJECT[start + length :]
    if hostile != OBJECT:
        with pytest.raises(ContainerError):
            CONTAINER.verify(memoryview(hostile), DIGEST, CONTAINER.extent)


@given(st.integers(0, 8 * HEAD - 1))
def test_any_flipped_bit_of_the_header_is_noticed_without_knowing_it(bit: int) -> None:
    data = bytearray(OBJECT)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ContainerError):
        parse_header(data, len(data))
