"""Room for the objects of one extent, side by side in one piece of memory, and the tokens in them as a view."""

from array import array

from kvlingua.common.container import Container
from kvlingua.common.header import ALIGNMENT
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool, View


def slot_bytes(container: Container) -> int:
    """What one object takes: its size, rounded up so that the next one is aligned as it would be in a file."""
    return -(-container.object_bytes // ALIGNMENT) * ALIGNMENT


class Slots:
    """`count` objects of a container in `memory`, which must begin at a multiple of 64 bytes.

    Slot i holds chunk i of a run of chunks; token position p of that run is in slot p // chunk_tokens.
    """

    def __init__(self, container: Container, memory: memoryview, count: int) -> None:
        self.container = container
        self.count = count
        self._stride = slot_bytes(container)
        self._memory = memory[: count * self._stride]

    def object(self, slot: int) -> memoryview:
        """All bytes of an object."""
        start = slot * self._stride
        return self._memory[start : start + self.container.object_bytes]

    def header(self, slot: int) -> memoryview:
        return self.object(slot)[: self.container.header_bytes]

    def data(self, slot: int) -> memoryview:
        return self.object(slot)[self.container.header_bytes :]

    def view(self, start: int, stop: int) -> View:
        """Token positions [start, stop) of the run, in canonical layout."""
        return _pool(self.container, self._memory, self.count).view(range(self.count), start, stop)


def passing(container: Container, memory: memoryview, start: int, stop: int) -> View:
    """Token positions [start, stop) of a run of objects that all pass, one after the other, through the beginning of
    `memory`: its pool has one block, and the block table names it for every object."""
    count = -(-stop // container.namespace.chunk_tokens)
    return _pool(container, memory[: container.object_bytes], 1).view(array("q", bytes(8 * count)), start, stop)


def _pool(container: Container, memory: memoryview, blocks: int) -> Pool:
    return format("canonical").pool(
        container.namespace.geometry,
        container.extent,
        page=container.namespace.chunk_tokens,
        blocks=blocks,
        buffers=[Buffer.of(memory[container.header_bytes :])],
        strides={"block": slot_bytes(container)},
    )


def part(view: View, start: int, stop: int) -> View:
    """The tokens [start, stop) of a view, counted from its first one."""
    return view.pool.view(view.table, view.start + start, view.start + stop)
