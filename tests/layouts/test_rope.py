"""Rotated dims in halves or in pairs: permuted exactly, against the formulas of those who keep them so."""

from __future__ import annotations

import pytest
import torch

from kvlingua.layouts import Buffer, Geometry, Layout, LayoutError, Plane, Rope, View, convert
from kvlingua.layouts.convert import Backend
from kvlingua.layouts.geometry import Order
from tests.layouts.planes_of_tensors import Tensors, empty, random_numbers, view

BACKENDS: tuple[Backend, ...] = ("native", "torch")
HEADS, TOKENS = 3, 5
TILES = Layout("tiles", "layer plane | block head (k: dim/8 token dim%8) (v: token dim)")
LARGER_TILES = Layout("larger tiles", "layer plane | block head (k: dim%16 token dim/16) (v: token dim)")


def kv(order: Order, width: int, dim: int = 64, dtype: str = "bfloat16") -> Geometry:
    return Geometry.kv(2, HEADS, dim, dtype, 16, rope=Rope(order, width))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def as_pairs(half: torch.Tensor, width: int) -> torch.Tensor:
    """llama.cpp: its [2i] is hf's [i], its [2i + 1] is hf's [i + width / 2]."""
    pairs = half.clone()
    pairs[..., 0:width:2] = half[..., : width // 2]
    pairs[..., 1:width:2] = half[..., width // 2 : width]
    return pairs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("width", [64, 32, 6, 2])
def test_halves_and_pairs(width: int, dtype: str, backend: Backend) -> None:
    half, pairs = kv("half", width, dtype=dtype), kv("interleaved", width, dtype=dtype)
    source, target, back = random_numbers(half, TOKENS), empty(pairs, TOKENS), empty(half, TOKENS)
    convert(view(half, source), view(pairs, target), backend=backend)
    expected = as_pairs(source["k"].view(torch.uint8).unflatten(-1, (64, -1)).transpose(-1, -2), width)
    assert torch.equal(bits(target["k"]), expected.transpose(-1, -2).flatten(-2))
    assert torch.equal(bits(target["v"]), bits(source["v"]))
    convert(view(pairs, target), view(half, back), backend=backend)
    assert torch.equal(bits(back["k"]), bits(source["k"]))
    assert not torch.equal(bits(target["k"]), bits(source["k"])) or width == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_deepseeks_rope_plane(backend: Backend) -> None:
    """transformers de-interleaves it: hf = cat(x[0::2], x[1::2]) of what the engines keep; the latent is the same."""
    engine, hf = (Geometry.mla(2, 128, 64, "bfloat16", rope=Rope(order, 64)) for order in ("interleaved", "half"))
    source, target = random_numbers(engine, TOKENS), empty(hf, TOKENS)
    convert(view(engine, source), view(hf, target), backend=backend)
    x = source["rope"]
    assert torch.equal(target["rope"], torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1))
    assert torch.equal(target["latent"], source["latent"])


def tiled(row: Layout, geometry: Geometry, tile: int, half: bool) -> tuple[View, list[torch.Tensor]]:
    """One block per 8 tokens, K in tiles; memory as [head, D / tile, token, tile], or with the tile's dims outside."""
    blocks, page = 2, 8
    memory = []
    for _ in range(2):
        memory.append(torch.zeros(blocks, HEADS, *((64 // tile, page, tile) if half else (tile, page, 64 // tile))))
        memory.append(torch.zeros(blocks, HEADS, page, 16))
    memory = [each.to(torch.bfloat16) for each in memory]
    buffers = [Buffer.of(each) for each in memory]
    pool = row.pool(geometry, geometry.full, page=page, blocks=blocks, buffers=buffers)
    return pool.view([1, 0], 6, 6 + TOKENS), memory


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [64, 32, 16, 12])
def test_through_tiles(width: int, backend: Backend) -> None:
    """Halves -> pairs in tiles of 8 -> halves in tiles of 16, tile inside out -> pairs."""
    half, pairs = kv("half", width), kv("interleaved", width)
    source, last = random_numbers(half, TOKENS), empty(pairs, TOKENS)
    first, memory = tiled(TILES, pairs, 8, True)
    second, others = tiled(LARGER_TILES, half, 16, False)
    convert(view(half, source), first, backend=backend)
    convert(first, second, backend=backend)
    convert(second, view(pairs, last), backend=backend)
    assert torch.equal(last["k"], as_pairs(source["k"], width))
    for layer in range(2):
        for token in range(TOKENS):
            block, at = (1, 0)[(6 + token) // 8], (6 + token) % 8
            in_eights = memory[2 * layer][block, :, :, at].flatten(1)
            assert torch.equal(in_eights, as_pairs(source["k"], width)[layer, :, token])
            in_sixteens = others[2 * layer][block, :, :, at].transpose(1, 2).flatten(1)
            assert torch.equal(in_sixteens, source["k"][layer, :, token])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_order_that_is_the_same_needs_no_permutation(backend: Backend) -> None:
    for geometry in (kv("interleaved", 32), kv("half", 32), kv("none", 0)):
        source, target = random_numbers(geometry, TOKENS), empty(geometry, TOKENS)
        convert(view(geometry, source), view(geometry, target), backend=backend)
        assert torch.equal(target["k"], source["k"])


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (Rope("half", 64), Rope(), r"k with rotated dims 64 \(half\) and 0 \(none\)"),
        (Rope(), Rope("interleaved", 64), r"k with rotated dims 0 \(none\) and 64 \(interleaved\)"),
        (Rope("half", 64), Rope("half", 32), r"k with rotated dims 64 \(half\) and 32 \(half\)"),
    ],
)
def test_rotations_that_differ_are_other_models(ours: Rope, theirs: Rope, why: str) -> None:
    one, other = kv(ours.order, ours.width), kv(theirs.order, theirs.width)
    source: Tensors = random_numbers(one, TOKENS)
    with pytest.raises(LayoutError, match=why):
        convert(view(one, source), view(other, empty(other, TOKENS)))


def test_bytes_of_an_unknown_form_are_not_permuted() -> None:
    def geometry(order: Order) -> Geometry:
        return Geometry(1, 1, (Plane("k", 8, "uint8", rope=Rope(order, 8)),))

    source = empty(geometry("half"), TOKENS)
    with pytest.raises(LayoutError, match="rotated dims half to uint8, rotated dims interleaved"):
        convert(view(geometry("half"), source), view(geometry("interleaved"), empty(geometry("half"), TOKENS)))
    convert(view(geometry("half"), source), view(geometry("half"), empty(geometry("half"), TOKENS)))
