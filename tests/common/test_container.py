"""Objects: written once, read by anyone, and never believed without a check."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.container import Container, parse_header
from kvlingua.common.errors import ContainerError, UnsupportedError
from kvlingua.common.header import ALIGNMENT, header_length
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent, Plane
from kvlingua.layouts.memory import Buffer
from tests.common.samples import containers, extents, namespace, stored


@given(containers())
def test_safetensors_reads_what_was_written(container: Container) -> None:
    data, _ = stored(container)
    one, extent = container.namespace, container.extent
    tensors = safetensors.torch.load(bytes(data))
    raw = torch.frombuffer(data, dtype=torch.uint8)[container.header_bytes :]
    offset = 0
    for plane in one.geometry.planes:
        heads = 1 if plane.per == "tensor" else extent.heads
        tokens = one.chunk_tokens if plane.per == "token" else 1
        assert tuple(tensors[plane.name].shape) == (heads, extent.layers, tokens, plane.width)
        assert tensors[plane.name].dtype == getattr(torch, plane.dtype)
        assert (container.header_bytes + offset) % plane.itemsize == 0
        size = tensors[plane.name].numel() * plane.itemsize
        assert torch.equal(tensors[plane.name].view(torch.uint8).flatten(), raw[offset : offset + size])
        offset += size
    assert offset == container.data_bytes
    names = [*one.planes, *(f"{name}_scale" for name in one.planes if one.scales_policy != "none")]
    assert sorted(tensors) == sorted(names)


@given(containers(), st.integers(0, 1 << 20))
def test_headers_are_of_one_length_and_read_back(container: Container, chunk_index: int) -> None:
    data, digest = stored(container)
    head = bytearray(container.header_bytes)
    body = memoryview(data)[container.header_bytes :]
    container.write_header(memoryview(head), digest, chunk_index, body)
    data[: container.header_bytes] = head
    container.verify(memoryview(data), digest, container.extent)
    parsed = parse_header(memoryview(data), len(data))
    assert parsed.container == container
    assert parsed.chain == digest
    assert parsed.first_token == chunk_index * container.namespace.chunk_tokens
    assert container.header_bytes % ALIGNMENT == 0
    assert header_length(data[:8], len(data)) == container.header_bytes
    assert container.object_bytes == container.header_bytes + container.data_bytes == len(data)


@given(containers(), st.data())
def test_any_flipped_bit_is_refused(container: Container, data: st.DataObject) -> None:
    written, digest = stored(container)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(written) - 1), min_size=1, max_size=20, unique=True)):
        written[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContainerError):
            container.verify(memoryview(written), digest, container.extent)
        written[bit // 8] ^= 1 << bit % 8
    container.verify(memoryview(written), digest, container.extent)


@given(containers(), st.data())
def test_a_reader_of_a_part_checks_its_part(container: Container, data: st.DataObject) -> None:
    """Damage is found by exactly those readers whose shards it lies in."""
    written, digest = stored(container)
    needed = data.draw(
        extents(container.namespace).map(container.extent.intersect).filter(lambda part: part is not None)
    )
    place = data.draw(st.integers(0, container.data_bytes - 1))
    written[container.header_bytes + place] ^= 0x10
    if needed.intersect(holder(container, place)):
        with pytest.raises(ContainerError, match="damaged"):
            container.verify(memoryview(written), digest, needed)
    else:
        container.verify(memoryview(written), digest, needed)


def holder(container: Container, place: int) -> Extent:
    """The shard that a byte of the data belongs to; of one value for all heads, its layers of all the object's heads.

    Found by filling a tensor of each plane's shape with the numbers of its shards.
    """
    one, extent = container.namespace, container.extent
    shards = one.grid.shards(extent)
    for plane in one.geometry.planes:
        owner = torch.zeros((extent.heads, extent.layers, one.chunk_tokens, plane.width * plane.itemsize), dtype=int)
        for number, shard in enumerate(shards):
            heads = slice(shard.head_start - extent.head_start, shard.head_stop - extent.head_start)
            layers = slice(shard.layer_start - extent.layer_start, shard.layer_stop - extent.layer_start)
            owner[heads, layers] = number
        owner = owner if plane.per == "token" else owner[:, :, :1]
        owner = owner[:1] if plane.per == "tensor" else owner
        if place < owner.numel():
            found = shards[int(owner.flatten()[place])]
            return replace(found, head_stop=extent.head_stop) if plane.per == "tensor" else found
        place -= owner.numel()
    raise AssertionError("beyond the data")


@given(containers())
def test_objects_side_by_side_are_a_pool_of_the_canonical_layout(container: Container) -> None:
    """What `convert` writes into the pool is what safetensors reads as [head, layer, token, dim]."""
    one, extent = container.namespace, container.extent
    scratch, count = torch.zeros(2 * container.object_bytes, dtype=torch.uint8), 2
    pool = format("canonical").pool(
        one.geometry,
        extent,
        page=one.chunk_tokens,
        blocks=count,
        buffers=[Buffer.of(scratch[container.header_bytes :])],
        strides={"block": container.object_bytes},
    )
    tokens = count * one.chunk_tokens
    planes = one.geometry.planes
    source = [random_rows(plane, extent.heads, tokens) for _ in range(extent.layers) for plane in planes]
    contiguous = format("hf").pool(
        one.geometry, extent, page=tokens, blocks=1, buffers=[Buffer.of(tensor) for tensor in source]
    )
    convert(contiguous.view([0], 0, tokens), pool.view([0, 1], 0, tokens))
    for index in range(count):
        written = memoryview(bytearray(scratch[index * container.object_bytes :][: container.object_bytes].tolist()))
        head, body = written[: container.header_bytes], written[container.header_bytes :]
        container.write_header(head, bytes(32), index, body)
        tensors = safetensors.torch.load(bytes(written))
        rows = slice(index * one.chunk_tokens, (index + 1) * one.chunk_tokens)
        for number, plane in enumerate(planes):
            layers = [tensor[:, rows] if plane.per == "token" else tensor for tensor in source[number :: len(planes)]]
            expected = torch.stack(layers, dim=1)
            assert torch.equal(tensors[plane.name].view(torch.uint8), expected.view(torch.uint8))


def random_rows(plane: Plane, heads: int, tokens: int) -> torch.Tensor:
    """Any bits, `[head, token, dim]`."""
    shape = 1 if plane.per == "tensor" else heads, tokens if plane.per == "token" else 1, plane.width * plane.itemsize
    return torch.randint(0, 256, shape, dtype=torch.uint8).view(getattr(torch, plane.dtype))


def test_an_object_of_something_else_is_refused() -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    written, digest = stored(container)
    cases = {
        "another chain": (container, bytes(32), written),
        "another namespace": (Container(namespace(fingerprint="cd" * 32), container.extent), digest, written),
        "other heads": (Container(container.namespace, Extent(0, 2, 0, 3)), digest, written),
        "cut short": (container, digest, written[:-1]),
        "longer": (container, digest, written + b"\0"),
        "empty": (container, digest, bytearray()),
    }
    for reader, chain, data in cases.values():
        with pytest.raises(ContainerError):
            reader.verify(memoryview(data), chain, reader.extent)
    with pytest.raises(ContainerError, match="is wanted of an object that holds"):
        container.verify(memoryview(written), digest, Extent(0, 5, 0, 3))


def test_an_object_of_the_same_size_but_other_heads_is_refused() -> None:
    one = namespace()
    written, digest = stored(Container(one, Extent(0, 2, 0, 3)))
    other = Container(one, Extent(2, 4, 0, 3))
    assert other.object_bytes == len(written)
    with pytest.raises(ContainerError, match="another namespace, or holds another extent") as refused:
        other.verify(memoryview(written), digest, other.extent)
    assert refused.value.reason == "identity"


def test_a_header_is_not_written_for_the_wrong_sizes() -> None:
    container = Container(namespace(), Extent(0, 4, 0, 3))
    head, body = memoryview(bytearray(container.header_bytes)), memoryview(bytearray(container.data_bytes))
    for wrong in ((head[1:], body), (head, body[1:])):
        with pytest.raises(ContainerError, match="bytes expected"):
            container.write_header(wrong[0], bytes(32), 0, wrong[1])
    for digest, index in ((bytes(31), 0), (bytes(32), -1), (bytes(32), 10**10)):
        with pytest.raises(ContainerError, match="chunk"):
            container.write_header(head, digest, index, body)
    assert not any(head)


def test_only_unions_of_shards_have_objects() -> None:
    with pytest.raises(UnsupportedError, match="shard grid"):
        Container(namespace(), Extent(0, 4, 0, 1))
    fine = namespace(layers=1 << 14, kv_heads=8, heads_per_shard=1, layers_per_shard=1)
    with pytest.raises(UnsupportedError, match="use more layers per shard"):
        Container(fine, Extent(0, 8, 0, 1 << 14))
    with pytest.raises(UnsupportedError, match="524288 runs of bytes in one object"):
        Container(
            namespace(layers=4, kv_heads=1 << 16, heads_per_shard=1 << 16, layers_per_shard=1), Extent(0, 1 << 16, 0, 4)
        )


def test_the_largest_models_fit_the_bounds() -> None:
    one = namespace(
        layers=128,
        kv_heads=128,
        heads_per_shard=16,
        layers_per_shard=1,
        kv_dtype="float8_e4m3fn",
        scales_policy="head",
    )
    container = Container(one, one.geometry.full)
    assert sum(len(part.runs) for part in container.parts(container.extent)) == 128 * 128 * 4
