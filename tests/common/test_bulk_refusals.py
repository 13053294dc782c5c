"""Numbers that can't be right, given to the native library's functions for objects: a code, and nothing read or
written."""

from array import array
from collections.abc import Callable
from ctypes import POINTER, addressof, byref, c_char, c_char_p, cast, pointer

import pytest

from kvlingua.common import bulk
from kvlingua.common import objects_abi as abi
from kvlingua.common.container import Container
from kvlingua.common.slots import passing
from kvlingua.layouts import native
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.plan import make_plan
from tests.common.kv import CHUNK, namespace
from tests.common.test_bulk import scratch

pytestmark = pytest.mark.skipif(not bulk.available(), reason=native.describe())

NULL, SIZE, TABLE, UNSUPPORTED, SPAN = 1, 2, 4, 6, 7
CONTAINER = Container(namespace(), Extent(0, 4, 0, 3))
HUGE = 1 << 62


class Call:
    """A load of three objects that don't exist, and the store of one: all numbers are right until they are spoiled."""

    def __init__(self) -> None:
        geometry, extent = CONTAINER.namespace.geometry, CONTAINER.extent
        self.target = bytearray(b"\x5a" * 3 * CONTAINER.data_bytes)
        pool = format("canonical").pool(
            geometry, extent, page=CHUNK, blocks=3, buffers=[Buffer.of(self.target)], strides={}
        )
        self.memory = scratch(2 * (CONTAINER.object_bytes + 64))
        self.plan = make_plan(passing(CONTAINER, self.memory, 0, 48), pool.view(array("q", range(3)), 0, 48))
        self.cplan = native.call(self.plan)
        form = bulk._form(CONTAINER, extent)
        self.form = type(form).from_buffer_copy(form)
        self.fields = (abi.Span * form.fields)(*form.field[: form.fields])
        self.runs = (abi.Span * form.runs)(*form.run[: form.runs])
        self.parts = (abi.Part * form.parts)(*form.part[: form.parts])
        self.form.field, self.form.run, self.form.part = self.fields, self.runs, self.parts
        self.objects = (abi.Stored * 3)(*(abi.Stored(b"x", b"0" * 64, block) for block in range(3)))
        self.group = abi.Group(-1, 0, pointer(self.form), pointer(self.cplan), self.objects, 3)
        self.gate = abi.Gate()
        start = addressof(c_char.from_buffer(self.memory))
        self.load = abi.Load(2, 0, start, self.memory.nbytes, pointer(self.gate), pointer(self.group), 1)
        self.new = abi.New(b"x", b"0" * 64, start, 0, 0, -1)
        self.store = abi.Store(1, 0, pointer(self.form), pointer(self.new), 1)

    def run_load(self) -> int:
        code: int = abi.library().kvl_load_objects(byref(self.load))
        return code

    def run_store(self) -> int:
        code: int = abi.library().kvl_store_objects(byref(self.store))
        return code


def test_the_calls_of_these_tests_are_right_until_they_are_spoiled() -> None:
    """Else the refusals below would prove nothing."""
    call = Call()
    assert call.run_load() == 0
    assert [one.status for one in call.objects] == [abi.SYSTEM] * 3  # descriptor -1
    assert call.run_store() == 0
    assert call.new.status == abi.SYSTEM


FORM: list[tuple[Callable[[Call], object], int]] = [
    (lambda c: setattr(c.form, "header", None), NULL),
    (lambda c: setattr(c.form, "header_bytes", -1), SIZE),
    (lambda c: setattr(c.form, "header_bytes", 2 << 20), SIZE),
    (lambda c: setattr(c.form, "object_bytes", c.form.header_bytes - 1), SIZE),
    (lambda c: setattr(c.form, "object_bytes", HUGE), SIZE),
    (lambda c: setattr(c.form, "chunk_tokens", 0), SIZE),
    (lambda c: setattr(c.form, "chain", c.form.header_bytes - 63), SIZE),
    (lambda c: setattr(c.form, "first_token", -1), SIZE),
    (lambda c: setattr(c.form, "header_checksum", HUGE), SIZE),
    (lambda c: setattr(c.form, "field", POINTER(abi.Span)()), NULL),
    (lambda c: setattr(c.form, "fields", -1), SIZE),
    (lambda c: setattr(c.fields[1], "begin", 0), SIZE),
    (lambda c: setattr(c.fields[0], "end", c.form.header_bytes + 1), SIZE),
    (lambda c: setattr(c.fields[c.form.fields - 1], "end", c.form.header_bytes + 1), SIZE),
    (lambda c: setattr(c.form, "run", POINTER(abi.Span)()), NULL),
    (lambda c: setattr(c.form, "runs", -1), SIZE),
    (lambda c: setattr(c.runs[0], "begin", 0), SIZE),
    (lambda c: setattr(c.runs[2], "end", c.form.object_bytes + 1), SIZE),
    (lambda c: setattr(c.runs[2], "end", c.runs[2].begin), SIZE),
    (lambda c: setattr(c.form, "part", POINTER(abi.Part)()), NULL),
    (lambda c: setattr(c.form, "parts", -1), SIZE),
    (lambda c: setattr(c.parts[0], "place", c.form.header_bytes - 31), SIZE),
    (lambda c: setattr(c.parts[0], "run", -1), SIZE),
    (lambda c: setattr(c.parts[0], "runs", 0), SIZE),
    (lambda c: setattr(c.parts[1], "runs", c.form.runs), SIZE),
    (lambda c: setattr(c.parts[0], "runs", HUGE), SIZE),
]

LOAD: list[tuple[Callable[[Call], object], int]] = [
    (lambda c: setattr(c.load, "threads", 0), SIZE),
    (lambda c: setattr(c.load, "threads", 1 << 20), SIZE),
    (lambda c: setattr(c.load, "kernels", 99), UNSUPPORTED),
    (lambda c: setattr(c.load, "scratch", None), NULL),
    (lambda c: setattr(c.load, "scratch", c.load.scratch + 32), SIZE),
    (lambda c: setattr(c.load, "scratch", c.load.scratch + CONTAINER.header_bytes + 64), SPAN),
    (lambda c: setattr(c.load, "scratch_bytes", c.form.object_bytes - 1), SIZE),
    (lambda c: setattr(c.load, "gate", POINTER(abi.Gate)()), NULL),
    (lambda c: setattr(c.load, "group", POINTER(abi.Group)()), NULL),
    (lambda c: setattr(c.load, "groups", -1), SIZE),
    (lambda c: setattr(c.group, "form", POINTER(abi.Form)()), NULL),
    (lambda c: setattr(c.group, "plan", POINTER(native.CPlan)()), NULL),
    (lambda c: setattr(c.group, "object", POINTER(abi.Stored)()), NULL),
    (lambda c: setattr(c.group, "objects", -1), SIZE),
    (lambda c: setattr(c.objects[1], "name", None), NULL),
    (lambda c: setattr(c.objects[1], "chain", None), NULL),
    (lambda c: setattr(c.objects[1], "block", -1), TABLE),
    (lambda c: setattr(c.objects[1], "block", 3), TABLE),
    (lambda c: setattr(c.objects[1], "block", HUGE), TABLE),
    (lambda c: setattr(c.form, "chunk_tokens", CHUNK // 2), SIZE),
    (lambda c: setattr(c.form, "object_bytes", c.runs[c.form.runs - 1].end - 1), SIZE),
    (lambda c: setattr(c.cplan.source, "blocks", 2), SPAN),
    (lambda c: setattr(c.cplan.source, "entries", 2), TABLE),
    (lambda c: setattr(c.cplan, "threads", 0), SIZE),
]

STORE: list[tuple[Callable[[Call], object], int]] = [
    (lambda c: setattr(c.store, "threads", 0), SIZE),
    (lambda c: setattr(c.store, "kernels", 99), UNSUPPORTED),
    (lambda c: setattr(c.store, "form", POINTER(abi.Form)()), NULL),
    (lambda c: setattr(c.store, "object", POINTER(abi.New)()), NULL),
    (lambda c: setattr(c.store, "objects", -1), SIZE),
    (lambda c: setattr(c.new, "name", None), NULL),
    (lambda c: setattr(c.new, "chain", None), NULL),
    (lambda c: setattr(c.new, "memory", None), NULL),
    (lambda c: setattr(c.new, "first_token", -1), SIZE),
    (lambda c: setattr(c.new, "first_token", 10**10), SIZE),
    (lambda c: setattr(c.new, "time_ns", -1), SIZE),
]


@pytest.mark.parametrize("case", range(len(FORM) + len(LOAD)))
def test_a_load_that_cannot_be_right(case: int) -> None:
    spoil, code = (FORM + LOAD)[case]
    call = Call()
    spoil(call)
    assert call.run_load() == code
    assert [one.status for one in call.objects] == [0] * 3
    assert call.target == b"\x5a" * len(call.target)
    assert not any(call.memory)


@pytest.mark.parametrize("case", range(len(FORM) + len(STORE)))
def test_a_store_that_cannot_be_right(case: int) -> None:
    spoil, code = (FORM + STORE)[case]
    call = Call()
    spoil(call)
    assert call.run_store() == code
    assert not any(call.memory)


def test_null_in_place_of_a_call() -> None:
    library = abi.library()
    assert library.kvl_load_objects(None) == NULL
    assert library.kvl_store_objects(None) == NULL
    assert library.kvl_checksum(0, None, None, 1, cast(c_char_p(b"x" * 32), POINTER(c_char))) == NULL
    assert library.kvl_checksum(0, None, None, 0, None) == NULL
