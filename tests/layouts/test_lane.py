"""Two streams that are ordered by events alone: the same bytes in every order that the events allow."""

from __future__ import annotations

import ctypes
import random
from typing import Any
from unittest.mock import patch

import pytest
import torch

from kvlingua.layouts import Buffer, convert, gpu, native
from kvlingua.layouts.lane import Lane, lane
from kvlingua.layouts.plan import Plan, make_plan
from kvlingua.layouts.staging import PARTS
from tests.layouts.test_staging import BLOCK, engine, library, stored

__all__ = ["library"]
QUEUE, BESIDE = 7, 9


class Streams:
    """The twin's kernels and copies, kept back on two streams and run in any order that events leave open."""

    def __init__(self, library: ctypes.CDLL, dropped: int = -1, failing: int = -1) -> None:
        self.library, self._handle = library, -id(self)
        self.dropped, self.failing = dropped, failing
        self.streams: dict[int, list[Any]] = {QUEUE: [], BESIDE: []}
        self.marks: dict[int, tuple[int, int]] = {}
        self.kept: list[object] = []
        self.follows = self.copies = 0

    def kvl_gpu_begin_lane(self, device: int, stream: Any, events: Any, count: int) -> int:
        stream._obj.value = BESIDE
        for index in range(count):
            events[index] = index + 1
        return 0

    def kvl_gpu_end_lane(self, device: int, stream: int, events: Any, count: int) -> int:
        return 0

    def kvl_gpu_captured(self, device: int, stream: int, found: Any) -> int:
        found._obj.value = int(stream != QUEUE)
        return 0

    def kvl_gpu_record(self, device: int, event: int, stream: int) -> int:
        self.marks[event] = stream, len(self.streams[stream])
        return 0

    def kvl_gpu_follow(self, device: int, stream: int, event: int) -> int:
        self.follows += 1
        if self.follows - 1 != self.dropped:
            self.streams[stream].append(self.marks[event])
        return 0

    def kvl_gpu_convert(self, call: Any) -> int:
        plan = call._obj.plan.contents
        self.kept.append(plan)
        again = gpu.Call(ctypes.pointer(plan))
        self.streams[call._obj.stream].append(lambda: self.library.kvl_gpu_convert(ctypes.byref(again)))
        return 0

    def kvl_gpu_copy(self, device: int, stream: int, target: int, source: int, nbytes: int) -> int:
        self.copies += 1
        if self.copies - 1 == self.failing:
            return 1002
        self.streams[stream].append(lambda: ctypes.memmove(target, source, nbytes) and 0)
        return 0

    def kvl_gpu_message(self, code: int) -> bytes:
        return f"code {code}".encode()

    def run(self, choose: random.Random) -> None:
        """Everything, whichever stream may go on being chosen by chance."""
        at = dict.fromkeys(self.streams, 0)
        while True:
            able = []
            for name, given in self.streams.items():
                if at[name] < len(given):
                    next_one = given[at[name]]
                    if not isinstance(next_one, tuple) or at[next_one[0]] >= next_one[1]:
                        able.append(name)
            if not able:
                break
            name = choose.choice(able)
            one = self.streams[name][at[name]]
            if not isinstance(one, tuple):
                assert one() == 0
            at[name] += 1
        assert all(at[name] == len(given) for name, given in self.streams.items()), "streams wait for each other"


def run_all(library: ctypes.CDLL, inward: bool, seed: int, dropped: int = -1) -> tuple[bool, int]:
    """Whether the bytes are right, and how many waits there were; the engine's and then the other side's memory."""
    source, pool = engine()
    target, memory = stored([5, 6, 1, 7, 0])
    wanted, expected = stored([5, 6, 1, 7, 0])
    convert(source, wanted, backend="torch")
    if inward:
        convert(source, target, backend="torch")
        for one in pool.memory:
            one.view(torch.uint8).fill_(0)
    streams = Streams(library, dropped)
    beside = Lane(streams, 0)  # type: ignore[arg-type]
    buffer = Buffer.of(torch.full((2 * BLOCK,), 0x33, dtype=torch.uint8))
    plan = make_plan(target, source) if inward else make_plan(source, target)
    call = gpu.Call(stream=QUEUE)
    tell = native.call

    def keeping(plan: Plan) -> native.CPlan:
        """Kernels' arguments are copied when they are launched; here they run later."""
        told = tell(plan)
        streams.kept += (plan, told)
        return told

    with patch.object(native, "call", keeping):
        gpu.run_staged(plan, target, buffer, streams, call, beside)  # type: ignore[arg-type]
    # What the caller gives its stream afterwards: by then all has happened, so the pinned side may be spoiled.
    spoil = memory if inward else None
    after = torch.empty_like(memory)
    streams.streams[QUEUE].append(lambda: after.copy_(memory) is None or 0)
    if spoil is not None:
        streams.streams[QUEUE].append(lambda: spoil.fill_(0x55) is None or 0)
    streams.run(random.Random(seed))
    if inward:
        memory.fill_(0x55)
        convert(source, target, backend="torch")
        return torch.equal(memory, expected), streams.follows
    return torch.equal(after, expected), streams.follows


@pytest.mark.parametrize("inward", [False, True])
def test_any_order_that_events_allow(library: ctypes.CDLL, inward: bool) -> None:
    assert all(run_all(library, inward, seed)[0] for seed in range(40))


@pytest.mark.parametrize("inward", [False, True])
def test_events_that_are_needed(library: ctypes.CDLL, inward: bool) -> None:
    """Without any one of the waits some order gives other bytes; but for the first one, of what was given before, and
    those that another one implies."""
    waits = run_all(library, inward, 0)[1]
    assert waits == 2 + 5 + 3, "begin and end, one for each stage, one for each that has to wait for its part"
    needed = {
        dropped for dropped in range(waits) if not all(run_all(library, inward, seed, dropped)[0] for seed in range(60))
    }
    assert len(needed) >= (7 if inward else 8), needed


def test_a_failure_leaves_streams_in_order(library: ctypes.CDLL) -> None:
    """What was launched before it is still waited for by what comes on the caller's stream."""
    source, _ = engine()
    target, _ = stored([0, 2, 4, 6, 1])
    streams = Streams(library, failing=2)
    buffer = Buffer.of(bytearray(2 * BLOCK))
    with pytest.raises(gpu.LayoutError, match="code 1002"):
        gpu.run_staged(
            make_plan(source, target),
            target,
            buffer,
            streams,  # type: ignore[arg-type]
            gpu.Call(stream=QUEUE),
            Lane(streams, 0),  # type: ignore[arg-type]
        )
    assert streams.streams[QUEUE][-1] == (BESIDE, len(streams.streams[BESIDE]))


def test_a_captured_stream_gets_no_second_one(library: ctypes.CDLL) -> None:
    streams = Streams(library)
    assert lane(streams, 0, QUEUE + 1) is None  # type: ignore[arg-type]
    mine = lane(streams, 0, QUEUE)  # type: ignore[arg-type]
    assert mine is not None
    assert mine is lane(streams, 0, QUEUE)
    assert PARTS == 2


def test_the_twin_has_the_calls(library: ctypes.CDLL) -> None:
    source, _ = engine()
    target, memory = stored([0, 1, 2, 3, 4])
    wanted, expected = stored([0, 1, 2, 3, 4])
    convert(source, wanted, backend="torch")
    beside = lane(library, 0, 0)
    assert beside is not None
    gpu.run_staged(make_plan(source, target), target, Buffer.of(bytearray(2 * BLOCK)), library, gpu.Call(), beside)
    assert torch.equal(memory, expected)
