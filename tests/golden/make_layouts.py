"""Write golden dumps of engines' memory: `python -m tests.golden.make_layouts`. They are frozen: it changes nothing.

v1/layouts/<row>-<kind>.safetensors: a tensor of bytes per allocation, named by its number, filled as the engine itself
defines its cache (tests/layouts/engine_pools*.py), not by our conversion. The metadata's `cache` says in JSON what was
laid out: geometry, extent, page, strides, block table. Every number is the one that `code` gives for its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save

from kvlingua.layouts import ITEMSIZE, Extent, Geometry, Plane, Rope, format
from tests.layouts.engine_pools import GOLDEN, EnginePool
from tests.layouts.engine_pools_form import BITS

FOLDER = Path(__file__).parent / "v1" / "layouts"
LAYERS, HEADS = 3, 4
START, TOKENS = 9, 21  # from inside one block of 16 into the next
TABLE = [1, 0]
NOBODYS = 0xEE  # what fills the memory elsewhere
MODULUS = {1: 251, 2: 65521, 4: 1 << 32}


def geometries(kind: str, equal: bool, in_bytes: bool = False) -> Iterator[tuple[str, Geometry]]:
    """The models whose caches are dumped, with a word for each. in_bytes: the row's tiles are counted in bytes."""
    v_dim = 32 if equal else 16
    if kind == "kv":
        yield "bfloat16", Geometry.kv(LAYERS, HEADS, 32, "bfloat16", v_dim)
        if in_bytes:
            yield "float8", Geometry.kv(LAYERS, HEADS, 32, "float8_e4m3fn", v_dim)
    elif kind == "mla":
        yield "mla", Geometry.mla(LAYERS, 32, 16, "bfloat16")
    elif kind == "scaled":
        yield "scaled", Geometry.kv(LAYERS, HEADS, 32, "float8_e4m3fn", v_dim, scales="token")
    else:
        numbers = [Plane(name, width, "float4_e2m1fn_x2") for name, width in (("k", 32), ("v", v_dim))]
        scales = [Plane(f"{plane.name}_scale", plane.width // 8, "uint8") for plane in numbers]
        yield "fp4", Geometry(LAYERS, HEADS, (*numbers, *scales))


def code(geometry: Geometry, plane: Plane) -> torch.Tensor:
    """The bits of each element [layer, token, head, dim], different ones for all places as far as they go."""
    widest = max(other.width for other in geometry.planes)
    layers, heads = torch.arange(geometry.layers), torch.arange(geometry.kv_heads)
    tokens, dims = torch.arange(TOKENS), torch.arange(plane.width)
    number = geometry.planes.index(plane) * geometry.layers + layers[:, None, None, None]
    number = (number * geometry.kv_heads + heads[:, None]) * TOKENS + tokens[:, None, None]
    number = (number * widest + dims) % MODULUS[plane.itemsize]
    return number.to({1: torch.uint8, 2: torch.int32, 4: torch.int32}[plane.itemsize]).to(BITS[plane.itemsize])


def in_order(bits: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Dims that are numbered as in the order `half`, put into the plane's own order."""
    if rope.order != "interleaved":
        return bits
    half = rope.width // 2
    order = [i // 2 + i % 2 * half for i in range(rope.width)] + list(range(rope.width, bits.shape[-1]))
    return bits[..., order]


def dump(row: str, geometry: Geometry) -> bytes:
    form, itemsize = GOLDEN[row], geometry.planes[0].itemsize
    multiple = form.page_multiple(itemsize)
    page = -(-16 // multiple) * multiple if form.has_blocks else START + TOKENS + 2
    table = TABLE if form.has_blocks and page == 16 else list(range(-(-(START + TOKENS) // page)))
    extent = Extent(0, 1, 1, 3) if geometry.kv_heads == 1 else Extent(1, 3, 1, 3)
    pool = EnginePool(row, geometry, extent, page, len(table), pad=8 if form.padded else 0)
    for memory in pool.memory:
        memory.fill_(NOBODYS)
    bits = {plane.name: in_order(code(geometry, plane), plane.rope) for plane in geometry.planes}
    content = {(name, layer): rows[layer] for name, rows in bits.items() for layer in range(LAYERS)}
    pool.put(content, table, START, extent)
    cache = {
        "layout": row,
        "spec": format(row).spec,
        "layers": geometry.layers,
        "kv_heads": geometry.kv_heads,
        "planes": [{**asdict(plane), "itemsize": ITEMSIZE[plane.dtype]} for plane in geometry.planes],
        "extent": {"heads": [extent.head_start, extent.head_stop], "layers": [extent.layer_start, extent.layer_stop]},
        "page": page,
        "blocks": len(table),
        "strides": form.strides(pool.shape),
        "table": table,
        "start": START,
        "stop": START + TOKENS,
    }
    buffers = form.buffers(pool.shape, pool.used)
    tensors = {str(index): buffer.contiguous() for index, buffer in enumerate(buffers)}
    return bytes(save(tensors, {"cache": json.dumps(cache, sort_keys=True)}))


def dumps() -> Iterator[tuple[str, bytes]]:
    """File name without its ending, and contents."""
    for row, form in GOLDEN.items():
        for kind in form.kinds:
            for word, geometry in geometries(kind, form.equal, in_bytes="B" in format(row).spec):
                yield f"{row}-{word}", dump(row, geometry)
    for row, kind in (("vllm_lbnhc", "kv"), ("sglang_mla", "mla")):
        _, geometry = next(geometries(kind, equal=False))
        *first, last = geometry.planes if kind == "mla" else reversed(geometry.planes)
        rotated = replace(last, rope=Rope("interleaved", 16))
        planes = (*first, rotated) if kind == "mla" else (rotated, *first)
        yield f"{row}-interleaved", dump(row, Geometry(LAYERS, geometry.kv_heads, planes))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, contents in dumps():
        (FOLDER / f"{name}.safetensors").write_bytes(contents)
