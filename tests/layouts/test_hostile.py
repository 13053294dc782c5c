"""Whatever a description says, nothing is read or written outside the memory it was given.

Descriptions that may be right, and then spoiled: sizes, strides, extents, tables, buffers. Each is refused with a
LayoutError and leaves memory as it was, or is carried out inside the buffers as the reference does it.
`make check-native` runs this with the sanitized library; the same in C is tests/native/.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from kvlingua.layouts import Buffer, Extent, Geometry, LayoutError, View, convert
from kvlingua.layouts.strides import arrange
from tests.layouts.fences import Fenced
from tests.layouts.random_pools import Kept, cast, copied, extents, geometries, layouts

HUGE = (1 << 31, 1 << 40, (1 << 40) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200)
HOSTILE = st.sampled_from((0, 1, 2, 3, 5, -1, -8, *HUGE, *(-number for number in HUGE)))
FENCES = [[Fenced() for _ in range(24)] for _ in range(2)]


@dataclass
class Spoiler:
    """Leaves most numbers alone."""

    draw: st.DrawFn
    spoiled: list[str] = field(default_factory=list)

    def chance(self, name: str, n: int) -> bool:
        """Whether to spoil what has this name: once in n times."""
        if self.draw(st.integers(1, n)) < n:
            return False
        self.spoiled.append(name)
        return True

    def number(self, name: str, right: int) -> int:
        if not self.chance(name, 30):
            return right
        return self.draw(HOSTILE | st.integers(right - 2, right + 2))


@st.composite
def views(draw: st.DrawFn, side: int, geometry: Geometry, kept: Kept, extent: Extent, tokens: int) -> View:
    """A view of `tokens` tokens, or of anything else. Raises LayoutError where the description is refused."""
    spoil = Spoiler(draw)
    start, has_blocks = draw(st.integers(0, 9)), draw(st.booleans())
    stop = start + tokens
    page = draw(st.sampled_from((1, 2, 4, 8, 12)) if has_blocks else st.integers(stop, stop + 3))
    table = list(range(-(-stop // page) + 1)) if has_blocks else [0]
    random.Random(draw(st.integers(0, 999))).shuffle(table)
    fixed = frozenset(plane.name for plane in geometry.planes if plane.is_scale and kept.fixed)
    layout = draw(layouts(geometry, page, fixed, has_blocks))
    strides: dict[str, Any] = {}
    made = arrange(layout, geometry, extent, page, len(table), strides, fixed)
    if spoil.chance("strides", 4):
        words = sorted(
            {word for plane in geometry.planes if plane.name not in fixed for word in layout.axes(plane.name)}
        )
        names = [*words, *(f"{plane.name}.{word}" for plane in geometry.planes for word in words)]
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            strides[name] = draw(HOSTILE | st.integers(0, 4000) | st.integers(0, 100).map(lambda n: 4 * n))
        if draw(st.booleans()):  # memory that has room for these strides, if they are possible
            made = arrange(layout, geometry, extent, page, len(table), strides, fixed)
    needs: dict[int, int] = {}
    for plane in made.planes:
        if plane.name not in fixed:
            needs |= {plane.buffer + layer * plane.buffers: plane.span for layer in range(extent.layers)}
    fences = list(FENCES[side])
    buffers = [memory(spoil, fences, needs[index]) for index in sorted(needs)]
    scales = {name: [memory(spoil, fences, 4 * extent.heads) for _ in range(extent.layers)] for name in sorted(fixed)}
    if spoil.chance("buffers", 20):
        change = draw(
            st.sampled_from((lambda b: b[1:], lambda b: b + b[:1], lambda b: b[::-1], lambda b: b[:1] * len(b)))
        )
        buffers = change(buffers)
    if spoil.chance("extent", 20):
        corners = (extent.head_start, extent.head_stop, extent.layer_start, extent.layer_stop)
        extent = Extent(*(spoil.number("corner", corner) for corner in corners))
    pool = layout.pool(
        geometry,
        extent,
        page=spoil.number("page", page),
        blocks=spoil.number("blocks", len(table)),
        buffers=buffers,
        strides=strides,
        scales=scales,
    )
    if spoil.chance("table", 10):
        table[draw(st.integers(0, len(table) - 1))] = draw(HOSTILE | st.integers(-2, len(table) + 1))
    event(
        f"spoiled: {', '.join(spoil.spoiled) or 'nothing'}"
        if len(spoil.spoiled) < 2
        else "spoiled: more than one thing"
    )
    return pool.view(table, spoil.number("start", start), spoil.number("stop", stop))


def memory(spoil: Spoiler, fences: list[Fenced], needed: int) -> Buffer:
    """Exactly as much as is needed, at the edge of a piece of memory; rarely a little less or more."""
    nbytes = needed + (spoil.draw(st.integers(-9, 9)) if spoil.chance("size", 40) else 0)
    nbytes = max(0, min(nbytes, Fenced.SIZE))
    fence = fences.pop()
    return fence.at_the_end(nbytes, 4) if spoil.draw(st.booleans()) else fence.at_the_start(nbytes)


def contents() -> list[bytes]:
    return [fence.contents() for side in FENCES for fence in side]


@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_description_leads_outside(data: st.DataObject) -> None:
    kept = data.draw(st.one_of(copied(), cast()))
    ours, theirs = data.draw(geometries(kept))
    held = data.draw(st.just(ours.full) | extents(ours))
    wanted = data.draw(st.just(ours.full) | extents(ours))
    tokens = data.draw(st.integers(0, 20))
    for fence in FENCES[0] + FENCES[1]:
        fence.fill()
    before = contents()
    allow_lossy = data.draw(st.integers(0, 9)) > 0
    try:
        source = data.draw(views(0, ours, kept[0], held, tokens))
        target = data.draw(views(1, theirs, kept[1], wanted, tokens))
        convert(source, target, backend="native", threads=2, allow_lossy=allow_lossy)
    except LayoutError:
        event("refused")
        assert contents() == before
        return
    event("carried out")
    after = contents()
    given = list(target.pool.buffers)
    assert after[: len(FENCES[0])] == before[: len(FENCES[0])], "the source was written"
    for fence, old in zip(FENCES[1], before[len(FENCES[0]) :], strict=True):
        now = fence.outside(given)
        fence.restore(old)
        assert now == fence.outside(given), "memory beside the buffers was written"
    convert(source, target, backend="torch", allow_lossy=allow_lossy)
    assert contents() == after


@pytest.mark.parametrize("offset", [-1, Fenced.SIZE])
def test_the_fence_holds(offset: int) -> None:
    """The control: a byte beyond the edge ends a process."""
    code = f"from tests.layouts.fences import Fenced\nimport ctypes\nctypes.string_at(Fenced().begin + {offset}, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode < 0, done
