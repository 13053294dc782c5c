"""What is asked of a library for GPUs, and of torch in its place, shown by ones that only note what they were asked."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvlingua.layouts import Buffer, LayoutError, convert, format, gpu, native, reference, torch_streams
from kvlingua.layouts.device_addresses import use_device_addresses
from kvlingua.layouts.pinned import Pinned
from kvlingua.layouts.plan import Plan, make_plan
from kvlingua.layouts.tuning import Tuning
from tests.layouts.test_gpu import MODEL, pool


def test_pinned_memory_that_is_dropped_stays() -> None:
    """A GPU may be at work on it."""
    library = Recording()
    pinned = Pinned(library, 4096, device=2)  # type: ignore[arg-type]
    address = pinned.address
    with pytest.warns(ResourceWarning, match="4096 bytes of pinned memory"):
        del pinned
    assert library.calls == [("pin", 2)]
    assert ctypes.string_at(address, 4096) == bytes(4096)


def test_memory_that_cannot_be_pinned_is_not_unpinned() -> None:
    library = Recording(wrong=1002)
    with pytest.raises(LayoutError, match="4096 bytes can't be pinned: code 1002"):
        Pinned(library, 4096)  # type: ignore[arg-type]
    assert library.calls == [("pin", 0)]


class Recording:
    """A library that does nothing, and what was called of it."""

    def __init__(self, pieces: int = 0, wrong: int = 0, devices: int = 1) -> None:
        self.pieces, self.wrong, self.devices, self.further = pieces, wrong, devices, 0
        self.calls: list[tuple[object, ...]] = []

    def kvl_gpu_devices(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def kvl_gpu_platform(self) -> bytes:
        return b"host"

    def kvl_gpu_captured(self, device: int, stream: int, found: Any) -> int:
        found._obj.value = 1  # so that stages go to one stream: test_lane.py has two
        return 0

    def kvl_gpu_mapped(self, device: int, address: int, found: Any) -> int:
        found._obj.value = address + self.further
        return self.wrong

    def kvl_gpu_ready(self, device: int) -> int:
        self.calls.append(("ready", device))
        return self.wrong

    def kvl_gpu_describe(self, device: int, found: Any) -> int:
        found._obj.name = b"GPU"
        return self.wrong * device

    def kvl_gpu_pin(self, device: int, address: int, nbytes: int) -> int:
        self.calls.append(("pin", device))
        return self.wrong

    def kvl_gpu_pieces(self, call: Any, count: Any) -> int:
        self.calls.append(("pieces?",))
        count._obj.value = self.pieces
        return 0

    def kvl_gpu_convert(self, call: Any) -> int:
        self.calls.append(("convert", call._obj.piece_bytes))
        return 0

    def kvl_gpu_copy(self, device: int, stream: int, target: int, source: int, nbytes: int) -> int:
        self.calls.append(("copy", nbytes))
        return 0

    def kvl_gpu_message(self, code: int) -> bytes:
        return f"code {code}".encode()


SIZE = MODEL.block_bytes(MODEL.full, 4)


def transfer(table: list[int]) -> Plan:
    """From a GPU to blocks of pinned memory; no memory is there."""
    whole = Buffer(1 << 30, 8 * SIZE, device="cuda:0")
    source = format("vllm_lbhnc").pool(MODEL, MODEL.full, page=4, blocks=8, buffers=[whole])
    pinned = replace(whole, pointer=1 << 31, device="pinned")
    target = format("canonical").pool(MODEL, MODEL.full, page=4, blocks=8, buffers=[pinned])
    return make_plan(source.view([5, 1, 0, 7], 0, 16), target.view(table, 0, 16))


@pytest.mark.parametrize(
    ("pieces", "table", "size", "calls"),
    [
        (3, [0, 1, 2, 3], {}, [("pieces?",), ("convert", 64)]),
        (0, [0, 1, 2, 3], {}, [("pieces?",), ("convert", 0), ("copy", 4 * SIZE)]),
        (0, [0, 1, 2, 7], {}, [("pieces?",), ("convert", 0), ("copy", 3 * SIZE), ("copy", SIZE)]),
        (0, [0, 2, 4, 6], {}, [("convert", 64)]),  # scattered: runs are too short
        (0, [0, 2, 4, 6], {"run_bytes": 0}, [("pieces?",), ("convert", 0), *[("copy", SIZE)] * 4]),
        (0, [0, 1, 2, 3], {"stage_bytes": 4 * SIZE + 1}, [("convert", 64)]),
        (0, [0, 1, 2, 3], {"stage_bytes": 0}, [("convert", 64)]),
    ],
)
def test_how_pinned_memory_is_reached(
    monkeypatch: pytest.MonkeyPatch,
    pieces: int,
    table: list[int],
    size: dict[str, int],
    calls: list[tuple[object, ...]],
) -> None:
    """Copy engines alone where they can, else staging where it is worth it, else kernels."""
    library = Recording(pieces)
    usual = Tuning(0, 0, piece_bytes=64, stage_bytes=SIZE, staging_bytes=8 * SIZE, run_bytes=2 * SIZE)
    monkeypatch.setattr(gpu, "_library", lambda index: library)
    monkeypatch.setattr(gpu, "tuned", lambda index: usual._replace(**size))
    monkeypatch.setattr(torch_streams, "buffer", lambda index, queue, nbytes: Buffer.of(bytearray(nbytes)))
    gpu.run(transfer(table), stream=7)
    assert library.calls == calls


@pytest.mark.parametrize(
    ("library", "index", "why"),
    [
        (Recording(), 0, None),
        (Recording(devices=2, wrong=1209), 1, "lib, ABI 1, can't use device 1: code 1209"),
        (Recording(devices=1), 1, "lib, ABI 1, finds 1 devices, none with number 1"),
    ],
)
def test_a_device_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, library: Recording, index: int, why: str | None
) -> None:
    """A library that loads may still have no code for a GPU; torch then does the work, and a warning says why."""
    monkeypatch.setattr(gpu, "_decided", {})
    monkeypatch.setattr(gpu, "here", lambda: gpu.Loaded(library, "lib, ABI 1"))  # type: ignore[arg-type]
    for _ in range(2):
        assert gpu.available(index) is (why is None)
        assert gpu.on(index).description == (why or "lib, ABI 1")
    assert library.calls.count(("ready", index)) == (index < library.devices)


def test_a_device_that_cannot_be_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libkvlingua_cuda.so").touch()
    monkeypatch.setattr(gpu, "library_path", lambda kind: tmp_path / f"libkvlingua_{kind}.so")
    monkeypatch.setattr(gpu, "load", lambda path: gpu.Loaded(Recording(devices=2, wrong=1002), "lib"))  # type: ignore[arg-type]
    assert gpu.describe() == "lib: GPU, device 1, which can't be described (the kernels refuse: code 1002)"


def test_capture_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels can't be loaded while a graph is captured, that is refused by name and tried again later."""
    library = Recording(wrong=1900)
    monkeypatch.setattr(gpu, "_decided", {})
    monkeypatch.setattr(gpu, "here", lambda: gpu.Loaded(library, "lib, ABI 1"))  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="while a graph is captured: convert something there before"):
        gpu.available(0)
    library.wrong = 0
    assert gpu.available(0)


def test_another_address_on_the_device() -> None:
    """Bases and spans are the device's, on the side that is pinned only."""
    library = Recording()
    library.further = 1 << 40
    pinned = Pinned(library, 8 * SIZE)  # type: ignore[arg-type]
    plan = transfer([0, 1, 2, 3])
    target = plan.target.pool.layout.pool(MODEL, MODEL.full, page=4, blocks=8, buffers=[pinned.buffer])
    plan = make_plan(plan.source, target.view([0, 1, 2, 3], 0, 16))
    told, moved = native.call(plan), native.call(plan)
    kept = use_device_addresses(moved, (plan.source.pool, target), 3)
    assert kept
    for index in range(told.planes):
        for side, further in (("source", 0), ("target", 1 << 40)):
            old, new = getattr(told.plane[index], side), getattr(moved.plane[index], side)
            for layer in range(told.layers):
                before, after = (ctypes.c_uint64.from_address(one.base + 8 * layer).value for one in (old, new))
                assert after == before + further
    begin, end = (ctypes.c_uint64.from_address(moved.target.span + 8 * i).value for i in range(2))
    assert (begin, end) == (pinned.address + (1 << 40), pinned.address + (1 << 40) + 8 * SIZE)
    assert moved.source.span == told.source.span
    pinned.address = 0  # nothing was pinned


class Stream:
    """What torch calls a stream."""

    def __init__(self, number: int, done: list[str]) -> None:
        self.number, self.done = number, done

    def synchronize(self) -> None:
        self.done.append(f"synchronise {self.number}")

    def __enter__(self) -> None:
        self.done.append(f"enter {self.number}")

    def __exit__(self, *error: object) -> None:
        self.done.append(f"leave {self.number}")


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(("stream", "number"), [(7, 7), (0, 1), (None, 99)])
def test_torch_runs_on_the_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: int | None, number: int, pinned: bool
) -> None:
    """In place of our kernels, on the given stream, the default one or torch's current one; where the CPU touches
    pinned memory, not before what the stream has been given."""
    done: list[str] = []
    fake = SimpleNamespace(
        ExternalStream=lambda number, device: Stream(number, done),
        default_stream=lambda index: Stream(1, done),
        current_stream=lambda index: SimpleNamespace(cuda_stream=99),
        stream=lambda one: one,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(gpu, "on", lambda index: gpu.Loaded(None, f"no code for {index}, {number}, {pinned}"))
    monkeypatch.setattr(reference, "copy", lambda *given: done.append("copy"))
    target = transfer([0, 1, 2, 3]).target if pinned else pool("cuda:0", 1 << 31).view([0], 0, 4)
    source = transfer([0, 1, 2, 3]).source if pinned else pool("cuda:0").view([0], 0, 4)
    convert(source, target, stream=stream)
    first = [f"synchronise {number}"] if pinned else []
    assert done == [*first, f"enter {number}", "copy", f"leave {number}"]
    assert f"conversions run through torch, which is slow: no code for 0, {number}, {pinned}" in caplog.text
