"""Write docs/layouts.md from the rows of layouts/formats.py: python docs/make_layouts.py; --check only compares it."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvlingua.layouts import Buffer, Geometry, Plane, Pool
from kvlingua.layouts.formats import FORMATS, OPAQUE, ROWS, Keeps, Row
from kvlingua.layouts.plan import PlaneCopy, make_plan

PAGE = Path(__file__).with_name("layouts.md")
TOKENS, HEADS, LAYERS, DIM = 64, 4, 2, 64

GEOMETRIES: dict[Keeps, Geometry] = {
    "kv": Geometry.kv(LAYERS, HEADS, DIM, "bfloat16"),
    "mla": Geometry.mla(LAYERS, 512, 64, "bfloat16"),
    "scaled": Geometry.kv(LAYERS, HEADS, DIM, "float8_e4m3fn", scales="token"),
    "fp4": Geometry(
        LAYERS,
        HEADS,
        (
            *(Plane(name, DIM // 2, "float4_e2m1fn_x2") for name in ("k", "v")),
            *(Plane(f"{name}_scale", DIM // 16, "uint8") for name in ("k", "v")),
        ),
    ),
}

KINDS: dict[Keeps, str] = {
    "kv": "K and V",
    "mla": "latent attention: planes `latent` and `rope`",
    "scaled": "fp8 with a scale per token and head",
    "fp4": "fp4 with a scale byte for each 16 numbers",
}

LETTERS = {
    "b": "blocks: what a page holds of a layer, all heads of it, is one run of bytes on both sides",
    "p": "pages: a page of one head is one run",
    "h": "all heads of one token are one run",
    "r": "rows: one head of one token is one run",
    "t": "transposed: the dims of a head lie apart on one side, and not on the other",
    "x": "tiled: dims or tokens are split into tiles, not alike on both sides",
}
"""How the slowest plane of a pair is moved, fastest first. The page is the same on both sides."""

TEXT = """# The layouts of engines

Written by `docs/make_layouts.py` from the rows of `layouts/formats.py`; `make check` compares them.
How to read a spec: [format/layout.md](format/layout.md). Each row is tested against the engine's own definition
(`tests/layouts/engine_pools*.py`), most against caches that the engine itself filled (`test_engine_definitions.py`).

## Rows

| name | engine | spec | what it is |
|---|---|---|---|
{rows}

A row whose axes are split takes only pages, or widths of heads, that are whole tiles: `token/16` needs pages of a
multiple of 16 tokens, `dim/16B` heads whose width is a multiple of 16 bytes. Rows of the same spec have the same bytes
in the same places; they have names of their own because the engines differ in what a block is, or in where a
sequence's tokens are.

Memory that none of these rows describes may have a row of its own:
`Layout("mine", "layer | block token head (k: dim) (v: dim)")`.

## Known by name, not described

`format()` refuses these with the reason, so that nothing of them is ever stored or loaded.

| name | why |
|---|---|
{opaque}

## Pairs

Any row converts to any other of the same planes, and bits arrive as they were. What differs is how long the runs of
bytes are that both sides have in common within a plane, and so the speed. Rows are sources, columns targets, numbered
as in the first column.

{letters}

With other pages on the two sides runs end where the shorter page does. Between rows of different planes nothing is
converted, but for K and V with and without scales, where loss is allowed.
{tables}
"""


def pool(row: Row, kind: Keeps, base: int) -> Pool:
    """The row laid over memory that isn't there: only its strides are looked at."""
    layout, geometry = FORMATS[row.name], GEOMETRIES[kind]
    sizes = {"layer": LAYERS, "plane": len(geometry.planes)}
    count = 1
    for axis in layout.separate:
        count *= sizes[axis]
    blocks = 2 if "block" in layout.axes(geometry.planes[0].name) else 1
    buffers = [Buffer(base + (index << 24), 1 << 24) for index in range(count)]
    return layout.pool(geometry, geometry.full, page=TOKENS, blocks=blocks, buffers=buffers)


def letter(source: Row, target: Row, kind: Keeps) -> str:
    """How the slowest plane of the pair is moved."""
    ours, theirs = pool(source, kind, 1 << 40), pool(target, kind, 1 << 41)
    planes = make_plan(ours.view([0, 1], 0, TOKENS), theirs.view([0, 1], 0, TOKENS)).planes
    return max((moved(plane, GEOMETRIES[kind].planes[plane.source.plane]) for plane in planes), key=list(LETTERS).index)


def moved(copy: PlaneCopy, plane: Plane) -> str:
    """The letter of one plane, or of a piece of it."""
    tiles = {side.tile_tokens for side in (copy.source, copy.target)} - {0}
    axes = [("d", *axis) for axis in copy.axes] + [("h", copy.heads, copy.source.head, copy.target.head)]
    tile = min(tiles, default=TOKENS)
    outer = [side.tile if side.tile_tokens == tile else side.token * tile for side in (copy.source, copy.target)]
    axes += [("n", tile, copy.source.token, copy.target.token), ("n", TOKENS // tile, outer[0], outer[1])]
    left, run = [axis for axis in axes if axis[1] > 1], plane.itemsize
    while inner := next((axis for axis in left if axis[2:] == (run, run)), None):
        left.remove(inner)
        run *= inner[1]
    apart = {name for name, *_ in left}
    if "d" in apart or len(tiles) > 1:
        return "x" if tiles or len(copy.axes) > 1 else "t"
    return {frozenset(): "b", frozenset("h"): "p", frozenset("n"): "h", frozenset("hn"): "r"}[frozenset(apart)]


def table(kind: Keeps) -> str:
    """The letters of all pairs of rows that keep `kind`."""
    rows = [row for row in ROWS if kind in row.keeps]
    width = max(len(row.name) for row in rows)
    tens = "".join(str(number // 10 or " ") if number % 10 == 0 else " " for number in range(1, len(rows) + 1))
    ones = "".join(str(number % 10) for number in range(1, len(rows) + 1))
    lines = [f"{'':{width + 6}}{tens}".rstrip(), f"{'':{width + 6}}{ones}"]
    for number, source in enumerate(rows, 1):
        letters = "".join(letter(source, target, kind) for target in rows)
        lines.append(f"{number:2}  {source.name:{width}}  {letters}")
    body = "\n".join(line for line in lines if line)
    return f"\n### {KINDS[kind][0].upper()}{KINDS[kind][1:]}\n\n```\n{body}\n```"


def text() -> str:
    """The whole page."""
    return TEXT.format(
        rows="\n".join(f"| `{row.name}` | {row.engine} | `{_cell(row.spec)}` | {_cell(row.what)} |" for row in ROWS),
        opaque="\n".join(f"| `{name}` | {reason} |" for name, reason in OPAQUE.items()),
        letters="\n".join(f"- `{key}`: {meaning}" for key, meaning in LETTERS.items()),
        tables="\n".join(table(kind) for kind in GEOMETRIES),
    )


def _cell(value: str) -> str:
    return value.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page isn't what the rows say")
    arguments = parser.parse_args()
    if not arguments.check:
        PAGE.write_text(text(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text():
        raise SystemExit(f"{PAGE.name} isn't what layouts/formats.py says: run python docs/make_layouts.py")


if __name__ == "__main__":
    main()
