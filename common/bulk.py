"""Objects in bulk: a batch is read, verified and converted, or made and written, in one call of the native library."""

import ctypes
import errno
import os
from collections.abc import Sequence
from ctypes import byref, pointer
from dataclasses import dataclass
from functools import lru_cache

from kvlingua.common import objects_abi as abi
from kvlingua.common.container import Container
from kvlingua.common.identity.keys import object_key
from kvlingua.layouts import native
from kvlingua.layouts.checks import check, scales_error
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.plan import Plan

_BEST = native.KERNELS["best"]
_MOST_THREADS = 1024


def available() -> bool:
    """Whether the native library can be used."""
    return native.available()


class Gate:
    """Lets a caller give a load up that is under way in another thread."""

    def __init__(self) -> None:
        self.gate = abi.Gate()

    @property
    def closed(self) -> bool:
        return bool(self.gate.closed)

    def close(self) -> None:
        """When this returns the load writes nothing to the engine's memory any more. Waits for no file."""
        abi.library().kvl_close_gate(byref(self.gate))


@dataclass(frozen=True, slots=True)
class Batch:
    """Objects of one container, and the plan by which they go to their target.

    plan: from a view whose pool has one block, at the beginning of the load's memory, and whose table names it for each
    of the objects. digests: their chain digests, one per entry of that table. needed: what the plan takes.
    """

    container: Container
    needed: Extent
    plan: Plan
    digests: Sequence[bytes]


def load(batches: Sequence[Batch], folder: int, memory: memoryview, threads: int, gate: Gate) -> list[list[bool]]:
    """Read each object from the open `folder`, verify what is needed of it, and convert that; whether it is intact,
    for each object of each batch.

    Once one isn't, the others are still verified, but nothing more is converted; after `gate` was closed nothing is
    tried any more. memory: begins at a multiple of 64; as many threads are used as objects fit into it, at most
    `threads`. Raises LayoutError if a plan can't be right (nothing was written then), or if the conversion of an
    intact object is refused.
    """
    rows = [_stored(batch) for batch in batches]
    groups = (abi.Group * len(batches))()
    for group, batch, row in zip(groups, batches, rows, strict=True):
        group.folder, group.form = folder, pointer(_form(batch.container, batch.needed))
        group.plan, group.object, group.objects = pointer(native.call(batch.plan)), row, len(row)
    call = abi.Load(
        min(threads, _MOST_THREADS),
        _BEST,
        _address(memory),
        memory.nbytes,
        pointer(gate.gate),
        groups,
        len(groups),
    )
    library = abi.library()
    code = library.kvl_load_objects(byref(call))
    if code:
        for batch in batches:
            check(batch.plan)  # says which block or address it is, where it can
        raise LayoutError(f"the native library refuses the load: {library.kvl_message(code).decode()}")
    for batch, row in zip(batches, rows, strict=True):
        for stored in row:
            if stored.status == abi.UNCONVERTED and stored.error == native.SCALES:
                raise scales_error(batch.plan)
            if stored.status == abi.UNCONVERTED:
                raise LayoutError(f"the native library refuses the copy: {library.kvl_message(stored.error).decode()}")
    return [[stored.status == abi.DONE for stored in row] for row in rows]


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object to be written to a file that is there, in an open folder, with the object's size.

    memory: of the object, where its data are already. time_ns: the file's time of change.
    """

    folder: int
    name: str
    digest: bytes
    first_token: int
    memory: memoryview
    time_ns: int


def store(container: Container, objects: Sequence[NewObject], threads: int) -> list[OSError | None]:
    """Make the header of each object in its memory, and write it to its file; what went wrong, for each.

    After the first that fails no further ones are begun, and fail too.
    """
    rows = (abi.New * len(objects))()
    for row, one in zip(rows, objects, strict=True):
        row.name, row.chain, row.memory = one.name.encode(), one.digest.hex().encode(), _address(one.memory)
        row.first_token, row.time_ns, row.folder = one.first_token, one.time_ns, one.folder
    form = pointer(_form(container, container.extent))
    library = abi.library()
    code = library.kvl_store_objects(byref(abi.Store(min(threads, _MOST_THREADS), _BEST, form, rows, len(rows))))
    if code:
        raise LayoutError(f"the native library refuses to write objects: {library.kvl_message(code).decode()}")
    return [_error(row.status, row.error) for row in rows]


def read_bytes(container: Container, needed: Extent) -> int:
    """How much of an object is read by somebody who needs `needed` of it."""
    return container.header_bytes + sum(stop - start for part in container.parts(needed) for start, stop in part.runs)


def _stored(batch: Batch) -> ctypes.Array[abi.Stored]:
    row = (abi.Stored * len(batch.digests))()
    for block, (stored, digest) in enumerate(zip(row, batch.digests, strict=True)):
        key = object_key(batch.container.namespace.digest, digest, batch.container.extent)
        stored.name, stored.chain, stored.block = key.partition("/")[2].encode(), digest.hex().encode(), block
    return row


@lru_cache(maxsize=256)
def _form(container: Container, needed: Extent) -> abi.Form:
    """The objects of a container for a reader of `needed`; for a writer that is all it holds."""
    template, base, parts = container.template, container.header_bytes, container.parts(needed)
    fields = [abi.Span(place.start, place.stop) for place in template.places.values()]
    fields.sort(key=lambda field: int(field.begin))
    runs = [abi.Span(base + start, base + stop) for part in parts for start, stop in part.runs]
    checksums, first = [], 0
    for part in parts:
        checksums.append(abi.Part(part.place.start, first, len(part.runs)))
        first += len(part.runs)
    return abi.Form(
        bytes(template.data),
        base,
        container.object_bytes,
        container.namespace.chunk_tokens,
        template.places["chain"].start,
        template.places["first_token"].start,
        template.places["header_checksum"].start,
        (abi.Span * len(fields))(*fields),
        len(fields),
        (abi.Span * len(runs))(*runs),
        len(runs),
        (abi.Part * len(checksums))(*checksums),
        len(checksums),
    )


def _error(status: int, error: int) -> OSError | None:
    if status == abi.DONE:
        return None
    code = error if status == abi.SYSTEM else errno.ECANCELED if status == abi.UNTRIED else errno.ESTALE
    return OSError(code, os.strerror(code))


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
