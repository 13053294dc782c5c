"""A second stream beside the caller's, so that copy engines work while kernels do; ordered by events alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from ctypes import byref, c_int32, c_void_p

from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.staging import PARTS, Stage

_own = threading.local()

Step = Callable[[Stage, int], None]
"""Launches what a stage needs on a stream."""


class Lane:
    """A stream of a device, and the events that order it and the caller's. It ends with its thread.

    library: one of gpu.py. Raises LayoutError if the platform gives none.
    """

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._library, self._device = library, device
        stream, events = c_void_p(), (c_void_p * (2 * PARTS + 1))()
        self._check(library.kvl_gpu_begin_lane(device, byref(stream), events, len(events)))
        self.stream, self._events = stream.value or 0, events
        self._first, self._second = list(events[:PARTS]), list(events[PARTS : 2 * PARTS])
        self._edge = events[2 * PARTS]

    def run(self, stages: Iterable[Stage], first: Step, second: Step, queue: int, copies_first: bool) -> None:
        """Give each stage's two steps to the two streams: that of copies to this one, the other to `queue`.

        The first step of a stage waits until its part of the buffer is free, that is for the second step of the stage
        that had it before; the second step waits for the first. All begins after what `queue` was given before, and
        what `queue` is given afterwards begins after all of it, also where a step fails.
        """
        ahead, behind = (self.stream, queue) if copies_first else (queue, self.stream)
        self._order(self._edge, queue, self.stream)
        try:
            for number, stage in enumerate(stages):
                if number >= PARTS:
                    self._follow(ahead, self._second[stage.part])
                first(stage, ahead)
                self._order(self._first[stage.part], ahead, behind)
                second(stage, behind)
                self._record(self._second[stage.part], behind)
        finally:
            try:
                self._order(self._edge, self.stream, queue)
            except LayoutError:  # the buffer is free again behind `queue`: nothing may be at work on it by then
                self._library.kvl_gpu_wait(self._device, self.stream)
                raise

    def _order(self, event: int | None, before: int, after: int) -> None:
        self._record(event, before)
        self._follow(after, event)

    def _record(self, event: int | None, stream: int) -> None:
        self._check(self._library.kvl_gpu_record(self._device, event, stream))

    def _follow(self, stream: int, event: int | None) -> None:
        self._check(self._library.kvl_gpu_follow(self._device, stream, event))

    def _check(self, code: int) -> None:
        if code:
            raise LayoutError(f"streams can't be ordered: {self._library.kvl_gpu_message(code).decode()}")

    def __del__(self) -> None:
        if hasattr(self, "_events"):  # the platform lets what was launched run to its end
            self._library.kvl_gpu_end_lane(self._device, self.stream, self._events, len(self._events))


def lane(library: ctypes.CDLL, device: int, queue: int) -> Lane | None:
    """This thread's own on a device, kept; None where `queue` is captured in a graph: a stream that has taken part in a
    capture is of no other use until that ends."""
    found = c_int32(0)
    code = library.kvl_gpu_captured(device, queue, byref(found))
    if code:
        raise LayoutError(f"a stream can't be asked: {library.kvl_gpu_message(code).decode()}")
    if found.value:
        return None
    lanes: dict[tuple[int, int], Lane] = _own.__dict__.setdefault("lanes", {})
    key = library._handle, device
    if key not in lanes:
        lanes[key] = Lane(library, device)
    return lanes[key]
