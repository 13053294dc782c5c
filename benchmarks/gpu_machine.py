"""What benchmarks/gpu.py measures on: a GPU, or in a dry run the CPU's memory with the kernels' host twin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from unittest.mock import patch

import torch

from benchmarks.baselines import Clock, Run
from kvlingua.layouts import Buffer, gpu, torch_streams
from kvlingua.layouts.pinned import Pinned

CYCLES_OF_A_MS = 2_000_000
"""Roughly, of any GPU's clock."""


class NothingHere(Exception):
    """There is no GPU to measure on; the message says why."""


class Machine:
    """The first GPU that torch finds, with torch's memory and streams."""

    dry = False

    def __init__(self) -> None:
        if not torch.cuda.is_available() or not gpu.available():
            raise NothingHere(f"torch has no GPU here, or {gpu.describe()}")
        self.name = torch.cuda.get_device_name(0)
        self.description = gpu.on(0).description
        self.clock: Clock = DeviceClock()

    def memory(self, nbytes: int) -> torch.Tensor:
        """Of the device: bytes from 0 to 126, so that none is a NaN's."""
        return torch.zeros(nbytes, dtype=torch.uint8, device="cuda:0").random_(0, 127)

    def buffer(self, memory: torch.Tensor) -> Buffer:
        return Buffer.of(memory)

    @contextlib.contextmanager
    def pinned(self, nbytes: int) -> Iterator[Buffer]:
        """Memory of the CPU, pinned by our own library near the GPU."""
        library = gpu.here().library
        assert library is not None
        memory = Pinned(library, nbytes, gpu.device(0).pci.decode())
        try:
            yield memory.buffer
        finally:
            self.wait()
            memory.close()

    def plain_pinned(self, nbytes: int) -> torch.Tensor:
        """Memory of the CPU as torch pins it."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def streams(self) -> Iterator[tuple[str, AbstractContextManager[object]]]:
        yield "default", torch.cuda.stream(torch.cuda.default_stream())
        yield "own", torch.cuda.stream(torch.cuda.Stream())

    def wait(self) -> None:
        torch.cuda.synchronize()

    def keep_busy(self, ms: int) -> None:
        """Give the current stream about so much to do."""
        torch.cuda._sleep(ms * CYCLES_OF_A_MS)

    def wait_by_the_library(self) -> None:
        """Wait for the current stream as our library does where it must."""
        library = gpu.here().library
        assert library is not None
        library.kvl_gpu_wait(0, torch_streams.current(0))


class DeviceClock(Clock):
    """Seconds on the device's current stream, which is busy for a millisecond when the work is given to it: so the
    calling thread gets ahead, and its time isn't counted as the device's."""

    def __init__(self) -> None:
        super().__init__(1)

    def seconds(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(CYCLES_OF_A_MS)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class DryMachine(Machine):
    """No GPU: every line but torch's own runs, and no figure means anything."""

    dry = True

    def __init__(self, stack: ExitStack) -> None:
        from tests.native import builds

        twin = builds.twin()
        if twin is None:
            raise NothingHere("there is no C++ compiler to make the host twin with")
        loaded = gpu.load(twin)
        self.name, self.description, self.clock = "host twin", loaded.description, Clock(1)
        replaced: dict[tuple[object, str], Callable[..., object]] = {
            (gpu, "here"): lambda: loaded,
            (gpu, "on"): lambda index: loaded,
            (torch_streams, "current"): lambda index: 0,
            (torch_streams, "buffer"): lambda index, queue, nbytes: self.buffer(torch.empty(nbytes, dtype=torch.uint8)),
        }
        for (module, name), function in replaced.items():
            stack.enter_context(patch.object(module, name, function))

    def memory(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8).random_(0, 127)

    def buffer(self, memory: torch.Tensor) -> Buffer:
        return Buffer(memory.data_ptr(), memory.nbytes, memory, "cuda:0")

    def plain_pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def streams(self) -> Iterator[tuple[str, AbstractContextManager[object]]]:
        yield "default", contextlib.nullcontext()

    def wait(self) -> None:
        pass

    def keep_busy(self, ms: int) -> None:
        pass


@contextlib.contextmanager
def machine(*, dry: bool) -> Iterator[Machine]:
    """Raises NothingHere."""
    with ExitStack() as stack:
        yield DryMachine(stack) if dry else Machine()
