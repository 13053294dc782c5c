"""The C entry itself: hostile arguments come back as a code, and nothing is written."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable

import pytest
import torch

from kvlingua.layouts import Geometry, convert, native
from kvlingua.layouts.plan import make_plan
from tests.layouts.engine_pools import EnginePool, random_content

LIBRARY = native.load(native.library_path()).library
NULL, SIZE, STRIDE, TABLE, UNSUPPORTED = 1, 2, 3, 4, 6


class Call:
    """A right call: 8 tokens from blocks 1, 0 of a source to block 0 of a target; 2 layers, 3 heads, one plane of 8."""

    def __init__(self) -> None:
        self.source = (ctypes.c_uint16 * (2 * 2 * 3 * 4 * 8))(*range(384))
        self.target = (ctypes.c_uint16 * (2 * 3 * 8 * 8))()
        item = 2
        self.keep = [
            array("Q", [ctypes.addressof(self.source), ctypes.addressof(self.source) + 2 * 3 * 4 * 8 * item]),
            array("Q", [ctypes.addressof(self.target), ctypes.addressof(self.target) + 3 * 8 * 8 * item]),
            array("q", [1, 0]),
            array("q", [0]),
        ]
        a, b, from_table, to_table = (numbers.buffer_info()[0] for numbers in self.keep)
        self.planes = (native.Plane * 1)(
            native.Plane(
                8,
                native.Side(a, 3 * 4 * 8 * item, 4 * 8 * item, 8 * item, item),
                native.Side(b, 3 * 8 * 8 * item, 8 * 8 * item, 8 * item, item),
            )
        )
        self.plan = native.CPlan(
            itemsize=item,
            threads=1,
            tokens=8,
            heads=3,
            layers=2,
            planes=1,
            plane=self.planes,
            source=native.Tokens(from_table, 2, 2, 4, 0),
            target=native.Tokens(to_table, 1, 1, 8, 0),
        )

    def run(self) -> int:
        assert LIBRARY is not None
        return int(LIBRARY.kvl_convert(self.plan))


def test_the_right_call() -> None:
    call = Call()
    assert call.run() == 0
    source = torch.tensor(list(call.source)).view(2, 2, 3, 4, 8)  # layer, block, head, token, dim
    wanted = torch.cat([source[:, 1], source[:, 0]], dim=2)
    assert torch.equal(torch.tensor(list(call.target)).view(2, 3, 8, 8), wanted)


BIG = 1 << 62


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda c: setattr(c.plan, "plane", None), NULL),
        (lambda c: setattr(c.planes[0].source, "base", None), NULL),
        (lambda c: setattr(c.planes[0].target, "base", None), NULL),
        (lambda c: c.keep[0].__setitem__(1, 0), NULL),
        (lambda c: setattr(c.plan.source, "table", None), NULL),
        (lambda c: setattr(c.plan.target, "table", None), NULL),
        (lambda c: setattr(c.plan, "itemsize", 3), SIZE),
        (lambda c: setattr(c.plan, "itemsize", 0), SIZE),
        (lambda c: setattr(c.plan, "threads", 0), SIZE),
        (lambda c: setattr(c.plan, "threads", 1 << 20), SIZE),
        (lambda c: setattr(c.plan, "reserved", 1), SIZE),
        (lambda c: setattr(c.plan, "stream_bytes", -1), SIZE),
        (lambda c: setattr(c.plan, "tokens", -1), SIZE),
        (lambda c: setattr(c.plan, "tokens", BIG), SIZE),
        (lambda c: setattr(c.plan, "heads", 0), SIZE),
        (lambda c: setattr(c.plan, "heads", 1 << 39), SIZE),
        (lambda c: setattr(c.plan, "layers", -2), SIZE),
        (lambda c: setattr(c.plan, "planes", 0), SIZE),
        (lambda c: setattr(c.planes[0], "width", 0), SIZE),
        (lambda c: setattr(c.planes[0], "width", BIG), SIZE),
        (lambda c: setattr(c.plan.source, "page", 0), SIZE),
        (lambda c: setattr(c.plan.target, "page", -8), SIZE),
        (lambda c: setattr(c.plan.source, "blocks", 0), SIZE),
        (lambda c: setattr(c.plan.source, "start", -1), SIZE),
        (lambda c: setattr(c.plan.source, "start", BIG), SIZE),
        (lambda c: setattr(c.plan.source, "entries", -1), SIZE),
        (lambda c: setattr(c.planes[0].source, "token", -16), STRIDE),
        (lambda c: setattr(c.planes[0].source, "token", 15), STRIDE),
        (lambda c: setattr(c.planes[0].target, "head", BIG), STRIDE),
        (lambda c: setattr(c.planes[0].source, "block", (1 << 63) - 2), STRIDE),
        (lambda c: c.keep[1].__setitem__(0, c.keep[1][0] + 1), STRIDE),
        (lambda c: c.keep[1].__setitem__(0, (1 << 64) - 2), STRIDE),
        (lambda c: setattr(c.plan, "tokens", 9), TABLE),
        (lambda c: setattr(c.plan.source, "start", 1), TABLE),
        (lambda c: setattr(c.plan.target, "entries", 0), TABLE),
        (lambda c: c.keep[2].__setitem__(0, 2), TABLE),
        (lambda c: c.keep[2].__setitem__(1, -1), TABLE),
        (lambda c: setattr(c.plan, "kernels", 99), UNSUPPORTED),
        (lambda c: setattr(c.plan, "kernels", -1), UNSUPPORTED),
    ],
)
def test_wrong_calls(spoil: Callable[[Call], None], code: int) -> None:
    call = Call()
    spoil(call)
    assert call.run() == code
    assert not any(call.target)


def test_a_null_plan_and_every_message() -> None:
    assert LIBRARY is not None
    assert LIBRARY.kvl_convert(None) == NULL
    messages = {LIBRARY.kvl_message(code) for code in range(7)}
    assert len(messages) == 7
    assert LIBRARY.kvl_message(-5) == LIBRARY.kvl_message(1000) == b"unknown error"


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("source", "target"), [("vllm_cpu_vec", "canonical"), ("hf", "vllm_lbnhc")])
def test_threads(source: str, target: str, threads: int) -> None:
    """Large enough that the work is really shared out; the tokens don't divide evenly."""
    tokens = 601
    model = Geometry.kv(2, 8, 128, "float32")
    content = random_content(model, tokens, seed=5)
    page = tokens if source == "hf" else 32
    table = list(range(-(-tokens // page)))[::-1]
    ours = EnginePool(source, model, model.full, page, len(table))
    ours.put(content, table, 0, model.full)
    into = list(range(-(-tokens // 64)))[::-1]
    theirs = EnginePool(target, model, model.full, 64, len(into))
    wanted = theirs.clone()
    wanted.put(content, into, 0, model.full)
    convert(ours.pool().view(table, 0, tokens), theirs.pool().view(into, 0, tokens), threads=threads)
    for got, right in zip(theirs.memory, wanted.memory, strict=True):
        assert torch.equal(got, right)


def test_a_plan_is_what_the_views_say() -> None:
    model = Geometry.kv(1, 1, 8, "float16")
    ours = EnginePool("hf", model, model.full, 5, 1)
    theirs = EnginePool("sglang_nhd", model, model.full, 1, 9)
    plan = make_plan(ours.pool().view([0], 1, 4), theirs.pool().view([8, 2, 5], 0, 3))
    assert (plan.tokens, plan.extent, len(plan.planes)) == (3, model.full, 2)
    assert plan.planes[1].source.bases[0] == ours.used[1].data_ptr()


def test_the_library_is_told_how_many_threads_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Library:
        def kvl_convert(self, call: native.CPlan) -> int:
            told.append(call.threads)
            return 0

    model = Geometry.kv(2, 3, 8, "float32")
    ours, theirs = EnginePool("hf", model, model.full, 5, 1), EnginePool("sglang_nhd", model, model.full, 1, 9)
    monkeypatch.setattr(native, "load", lambda path: native._Loaded(Library(), ""))
    for threads in (1, 3):
        convert(ours.pool().view([0], 0, 5), theirs.pool().view(range(5), 0, 5), threads=threads)
    assert told == [1, 3]
