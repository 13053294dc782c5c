"""Transfers by way of a buffer on the device, with the host twin: the same bytes, however much the buffer holds."""

from __future__ import annotations

import ctypes
import random
from dataclasses import replace

import pytest
import torch

from kvlingua.layouts import Buffer, Extent, Geometry, LayoutError, View, convert, format, gpu
from kvlingua.layouts.plan import make_plan
from kvlingua.layouts.staging import can_stage, runs, stages
from tests.layouts.engine_pools import EnginePool
from tests.native import builds

MODEL = Geometry.kv(2, 3, 16, "bfloat16")
CHUNK = 8
BLOCK = MODEL.block_bytes(MODEL.full, CHUNK)


def engine(tokens: int = 40) -> tuple[View, EnginePool]:
    pool = EnginePool("vllm_lbnhc", MODEL, MODEL.full, 5, tokens // 5 + 2, 0, 3)
    table = random.Random(1).sample(range(tokens // 5 + 2), tokens // 5)
    return pool.pool().view(table, 0, tokens), pool


def stored(
    table: list[int], start: int = 0, stop: int = 40, strides: dict[str, int] | None = None
) -> tuple[View, torch.Tensor]:
    memory = torch.full((8 * BLOCK + 4096,), 0x55, dtype=torch.uint8)
    buffer = replace(Buffer.of(memory), device="pinned")
    pool = format("canonical").pool(MODEL, MODEL.full, page=CHUNK, blocks=8, buffers=[buffer], strides=strides)
    return pool.view(table, start, stop), memory


@pytest.fixture
def library() -> ctypes.CDLL:
    twin = builds.twin()
    library = gpu.load(twin).library if twin else None
    if library is None:
        pytest.skip("there is no C++ compiler to make the host twin with")
    return library


@pytest.mark.parametrize("room", [1, 2, 3, 9])
@pytest.mark.parametrize("table", [[0, 1, 2, 3, 4], [5, 6, 1, 7, 0]])
def test_there_and_back(library: ctypes.CDLL, table: list[int], room: int) -> None:
    source, pool = engine()
    target, memory = stored(table)
    wanted, expected = stored(table)
    convert(source, wanted, backend="torch")
    buffer = Buffer.of(torch.empty(room * BLOCK + 5, dtype=torch.uint8))
    plan = make_plan(source, target)
    assert can_stage(plan, target, buffer.nbytes)
    found = list(stages(plan, target, buffer))
    assert len(found) == -(-5 // room), "a launch for as many blocks as there is room for"
    copied = [run for stage in found for run in stage.runs]
    assert sum(nbytes for _, _, nbytes in copied) == 5 * BLOCK
    if room >= 5:
        assert len(copied) == runs(target) == (1 if table == [0, 1, 2, 3, 4] else 4)
    gpu.run_staged(plan, target, buffer, library, gpu.Call())
    assert torch.equal(memory, expected)
    for one in pool.memory:
        one.view(torch.uint8).fill_(0)
    gpu.run_staged(make_plan(target, source), target, buffer, library, gpu.Call())
    memory.fill_(0x55)
    convert(source, target, backend="torch")
    assert torch.equal(memory, expected)


def test_part_of_the_tokens(library: ctypes.CDLL) -> None:
    """From the middle of one table to the middle of another."""
    source, _ = engine()
    source = replace(source, start=11, stop=27)
    target, memory = stored([7, 2, 3, 5], 8, 24)
    wanted, expected = stored([7, 2, 3, 5], 8, 24)
    convert(source, wanted, backend="torch")
    gpu.run_staged(make_plan(source, target), target, Buffer.of(bytearray(BLOCK)), library, gpu.Call())
    assert torch.equal(memory, expected)


def test_what_is_not_whole_blocks_is_not_staged() -> None:
    source, _ = engine()
    for table, start, stop in (([0, 1, 2, 3, 4, 5], 1, 41), ([0, 1, 2, 3, 4], 0, 37)):
        target, _ = stored(table, start, stop)
        plan = make_plan(replace(source, stop=stop - start), target)
        assert not can_stage(plan, target, 1 << 30)
    target, _ = stored([0, 1, 2, 3, 4], strides={"block": BLOCK + 64})
    assert not can_stage(make_plan(source, target), target, 1 << 30)
    target, _ = stored([0, 1, 2, 3, 4])
    assert not can_stage(make_plan(source, target), target, BLOCK - 1)
    heads = [Buffer.of(bytearray(2 * 40 * 16 * 2)) for _ in range(4)]
    part = format("hf").pool(MODEL, Extent(0, 2, 0, 2), page=40, blocks=1, buffers=heads)
    assert not can_stage(make_plan(part.view([0], 0, 40), target), target, 1 << 30)


def test_a_wrong_table_is_refused_before_the_first_stage(library: ctypes.CDLL) -> None:
    source, _ = engine()
    target, memory = stored([0, 1, 2, 3, 9])
    with pytest.raises(LayoutError, match="names block 9"):
        gpu.run_staged(make_plan(source, target), target, Buffer.of(bytearray(BLOCK)), library, gpu.Call())
    assert (memory == 0x55).all()
