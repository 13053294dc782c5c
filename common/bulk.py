"""Objects in bulk: a batch is read, verified and converted, or made and written, in one call of the native library.

The structures are those of csrc/kvlingua.h; what an object looks like is handed over as numbers.
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache

from kvlingua.common.container import Container
from kvlingua.common.identity.keys import object_key
from kvlingua.layouts import native
from kvlingua.layouts.checks import check, scales_error
from kvlingua.layouts.errors import LayoutError
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.plan import Plan

DONE, UNTRIED, SYSTEM, FOREIGN, OTHER_SIZE, OTHER, DAMAGED, UNCONVERTED = range(8)
"""What became of an object, as in the header. UNTRIED: the load was given up before its turn came."""

_SCALES = 10  # KVL_SCALES


class _Span(Structure):
    _fields_ = (("begin", c_uint64), ("end", c_uint64))


class _Part(Structure):
    _fields_ = (("place", c_int64), ("run", c_int64), ("runs", c_int64))


class _Form(Structure):
    _fields_ = (
        ("header", c_char_p),
        ("header_bytes", c_int64),
        ("object_bytes", c_int64),
        ("chunk_tokens", c_int64),
        ("chain", c_int64),
        ("first_token", c_int64),
        ("header_checksum", c_int64),
        ("field", POINTER(_Span)),
        ("fields", c_int64),
        ("run", POINTER(_Span)),
        ("runs", c_int64),
        ("part", POINTER(_Part)),
        ("parts", c_int64),
    )


class _Gate(Structure):
    _fields_ = (("closed", c_int32), ("writing", c_int32))


class _Stored(Structure):
    _fields_ = (
        ("name", c_char_p),
        ("chain", c_char_p),
        ("block", c_int64),
        ("status", c_int32),
        ("error", c_int32),
    )


class _Group(Structure):
    _fields_ = (
        ("folder", c_int32),
        ("reserved", c_int32),
        ("form", POINTER(_Form)),
        ("plan", POINTER(native.CPlan)),
        ("object", POINTER(_Stored)),
        ("objects", c_int64),
    )


class _Load(Structure):
    _fields_ = (
        ("threads", c_int32),
        ("kernels", c_int32),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("gate", POINTER(_Gate)),
        ("group", POINTER(_Group)),
        ("groups", c_int64),
    )


class _New(Structure):
    _fields_ = (
        ("name", c_char_p),
        ("chain", c_char_p),
        ("memory", c_void_p),
        ("first_token", c_int64),
        ("time_ns", c_int64),
        ("folder", c_int32),
        ("status", c_int32),
        ("error", c_int32),
        ("reserved", c_int32),
    )


class _Store(Structure):
    _fields_ = (
        ("threads", c_int32),
        ("kernels", c_int32),
        ("form", POINTER(_Form)),
        ("object", POINTER(_New)),
        ("objects", c_int64),
    )


def available() -> bool:
    """Whether the native library can be used."""
    return native.available()


def library() -> ctypes.CDLL:
    """The native library with the functions for objects declared. Raises LayoutError if there is none."""
    found, description = native.load(native.library_path())
    if found is None:
        raise LayoutError(description)
    _declare(found)
    return found


@cache
def _declare(found: ctypes.CDLL) -> None:
    found.kvl_load_objects.argtypes = (POINTER(_Load),)
    found.kvl_store_objects.argtypes = (POINTER(_Store),)
    found.kvl_close_gate.argtypes = (POINTER(_Gate),)
    found.kvl_close_gate.restype = None
    found.kvl_checksum.argtypes = (c_int32, c_void_p, c_void_p, c_int64, c_void_p)


class Gate:
    """Lets a caller give a load up that is under way in another thread."""

    def __init__(self) -> None:
        self._gate = _Gate()

    def close(self) -> None:
        """When this returns the load writes nothing to the engine's memory any more. Waits for no file."""
        library().kvl_close_gate(byref(self._gate))


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

    @property
    def names(self) -> list[str]:
        """The names of their files."""
        return [file_name(self.container, digest) for digest in self.digests]


def load(batches: Sequence[Batch], folder: int, memory: memoryview, threads: int, gate: Gate) -> list[list[int]]:
    """Read each object from the open `folder`, verify what is needed of it, and convert that; a status for each.

    Once one isn't DONE, the others are still verified, but nothing more is converted. memory: begins at a multiple of
    64; as many threads are used as objects fit into it, at most `threads`. Raises LayoutError if a plan can't be right
    (nothing was written then) or the conversion of an intact object is refused.
    """
    start, nbytes = _address(memory), memory.nbytes
    rows = [
        (_Stored * len(batch.digests))(
            *(
                (name.encode(), digest.hex().encode(), block, 0, 0)
                for block, (name, digest) in enumerate(zip(batch.names, batch.digests, strict=True))
            )
        )
        for batch in batches
    ]
    groups = (_Group * len(batches))()
    for group, batch, row in zip(groups, batches, rows, strict=True):
        plan = ctypes.pointer(native.call(batch.plan))
        group.folder, group.form, group.plan = folder, ctypes.pointer(_form(batch.container, batch.needed)), plan
        group.object, group.objects = row, len(row)
    lib = library()
    call = _Load(min(threads, 1024), 0, start, nbytes, ctypes.pointer(gate._gate), groups, len(groups))
    code = lib.kvl_load_objects(byref(call))
    if code:
        for batch in batches:
            check(batch.plan)  # says which block or address it is, where it can
        raise LayoutError(f"the native library refuses the load: {lib.kvl_message(code).decode()}")
    for batch, row in zip(batches, rows, strict=True):
        for stored in row:
            if stored.status == UNCONVERTED and stored.error == _SCALES:
                raise scales_error(batch.plan)
            if stored.status == UNCONVERTED:
                raise LayoutError(f"the native library refuses the copy: {lib.kvl_message(stored.error).decode()}")
    return [[stored.status for stored in row] for row in rows]


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
    rows = (_New * len(objects))(
        *(
            (
                one.name.encode(),
                one.digest.hex().encode(),
                _address(one.memory),
                one.first_token,
                one.time_ns,
                one.folder,
            )
            for one in objects
        )
    )
    lib = library()
    form = ctypes.pointer(_form(container, container.extent))
    code = lib.kvl_store_objects(byref(_Store(min(threads, 1024), 0, form, rows, len(rows))))
    if code:
        raise LayoutError(f"the native library refuses to write objects: {lib.kvl_message(code).decode()}")
    return [_error(row.status, row.error) for row in rows]


def file_name(container: Container, digest: bytes) -> str:
    """An object's key without the namespace."""
    return object_key(container.namespace.digest, digest, container.extent).partition("/")[2]


def read_bytes(container: Container, needed: Extent) -> int:
    """How much of an object is read by somebody who needs `needed` of it."""
    return container.header_bytes + sum(stop - start for part in container.parts(needed) for start, stop in part.runs)


@lru_cache(maxsize=256)
def _form(container: Container, needed: Extent) -> _Form:
    """The objects of a container for a reader of `needed`; for a writer that is all it holds."""
    template, base = container.template, container.header_bytes
    parts = container.parts(needed)
    runs = [(base + start, base + stop) for part in parts for start, stop in part.runs]
    fields = sorted((place.start, place.stop) for place in template.places.values())
    places, first = [], 0
    for part in parts:
        places.append((part.place.start, first, len(part.runs)))
        first += len(part.runs)
    return _Form(
        bytes(template.data),
        base,
        container.object_bytes,
        container.namespace.chunk_tokens,
        template.places["chain"].start,
        template.places["first_token"].start,
        template.places["header_checksum"].start,
        (_Span * len(fields))(*fields),
        len(fields),
        (_Span * len(runs))(*runs),
        len(runs),
        (_Part * len(places))(*places),
        len(places),
    )


def _error(status: int, error: int) -> OSError | None:
    if status == DONE:
        return None
    code = error if status == SYSTEM else errno.ECANCELED if status == UNTRIED else errno.EBADF
    return OSError(code, os.strerror(code))


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
