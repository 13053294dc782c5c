"""Scales: those that travel beside their numbers, those that lie on an engine's layers, and those that don't fit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kvlingua.layouts import Buffer, Geometry, LayoutError, View, convert, format
from kvlingua.layouts.convert import Backend
from kvlingua.layouts.geometry import Per
from tests.layouts.planes_of_tensors import Tensors, empty, random_numbers, view

BACKENDS: tuple[Backend, ...] = ("native", "torch")


def kv(dtype: str, scales: Per | None = None) -> Geometry:
    return Geometry.kv(2, 3, 16, dtype, 8, scales=scales)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("token", "token"), ("head", "token"), ("tensor", "token"), ("tensor", "head"), ("head", "head")],
)
def test_scales_travel_beside_their_numbers(ours: Per, theirs: Per, backend: Backend) -> None:
    source, target = random_numbers(kv("float8_e5m2", ours), 9), empty(kv("float8_e5m2", theirs), 9)
    convert(view(kv("float8_e5m2", ours), source), view(kv("float8_e5m2", theirs), target), backend=backend)
    for name in ("k", "v"):
        assert torch.equal(target[name].view(torch.uint8), source[name].view(torch.uint8))
        scale = target[f"{name}_scale"]
        assert torch.equal(scale, source[f"{name}_scale"].expand(scale.shape))


@pytest.mark.parametrize(("ours", "theirs"), [("token", "head"), ("token", "tensor"), ("head", "tensor")])
def test_several_scales_do_not_become_one(ours: Per, theirs: Per) -> None:
    source = random_numbers(kv("float8_e5m2", ours), 9)
    with pytest.raises(LayoutError, match=f"k_scale has a scale per {ours}, the target one per {theirs}"):
        convert(
            view(kv("float8_e5m2", ours), source),
            view(kv("float8_e5m2", theirs), empty(kv("float8_e5m2", theirs), 9)),
            allow_lossy=True,
        )


@pytest.mark.parametrize("scales", ["head", "tensor"])
def test_a_scale_for_all_tokens_is_not_made_from_some(scales: Per) -> None:
    source, target = random_numbers(kv("float16"), 9), empty(kv("float8_e5m2", scales), 9)
    with pytest.raises(LayoutError, match=f"k would need a scale per {scales}.*take scales per token"):
        convert(view(kv("float16"), source), view(kv("float8_e5m2", scales), target), allow_lossy=True)


@dataclass
class Static:
    """A vLLM-like cache: fp8 numbers, and scales on the layer."""

    geometry: Geometry
    tensors: Tensors
    scales: dict[str, torch.Tensor]

    @classmethod
    def of(cls, per: Per, dtype: str = "float8_e4m3fn", scale: float = 0.25) -> Static:
        geometry = kv(dtype, per)
        heads = 1 if per == "tensor" else 3
        scales = {name: torch.full((2, heads), scale) * torch.arange(1, 3)[:, None] for name in ("k_scale", "v_scale")}
        return cls(geometry, random_numbers(geometry, 9, size=20.0), scales)

    def view(self) -> View:
        return view(self.geometry, self.tensors, self.scales)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per", ["head", "tensor"])
def test_static_scales_are_stored_and_must_fit_where_they_are_loaded(per: Per, backend: Backend) -> None:
    engine, geometry = Static.of(per), kv("float8_e4m3fn", per)
    stored = empty(geometry, 9)
    convert(engine.view(), view(geometry, stored), backend=backend)
    assert torch.equal(stored["k_scale"][:, :, 0, 0], engine.scales["k_scale"])
    assert torch.equal(stored["k"].view(torch.uint8), engine.tensors["k"].view(torch.uint8))

    same = Static.of(per)
    same.tensors["k"].fill_(1)
    convert(view(geometry, stored), same.view(), backend=backend)
    assert torch.equal(same.tensors["k"].view(torch.uint8), engine.tensors["k"].view(torch.uint8))

    other = Static.of(per)
    other.scales["v_scale"][1, -1] *= 2
    kept = {name: each.view(torch.uint8).clone() for name, each in (other.tensors | other.scales).items()}
    other.tensors["k"].view(torch.uint8)[0, 0, 0, 0] ^= 1
    kept["k"][0, 0, 0, 0] ^= 1
    with pytest.raises(LayoutError, match=r"static scales \((k_scale, )?v_scale\) differ"):
        convert(view(geometry, stored), other.view(), backend=backend)
    for name, each in (other.tensors | other.scales).items():
        assert torch.equal(each.view(torch.uint8), kept[name]), name

    convert(view(geometry, stored), other.view(), backend=backend, allow_lossy=True)
    assert torch.equal(other.tensors["k"].view(torch.uint8), engine.tensors["k"].view(torch.uint8))
    halved = (engine.tensors["v"][1, -1].float() / 2).to(torch.float8_e4m3fn)
    assert torch.equal(other.tensors["v"][1, -1].view(torch.uint8), halved.view(torch.uint8))
    assert torch.equal(other.scales["v_scale"].view(torch.uint8), kept["v_scale"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_without_scales_fit_static_ones(backend: Backend) -> None:
    engine = Static.of("head", scale=0.25)
    source = random_numbers(kv("bfloat16"), 9, size=20.0)
    convert(view(kv("bfloat16"), source), engine.view(), backend=backend, allow_lossy=True)
    for layer, scale in ((0, 0.25), (1, 0.5)):
        want = (source["k"][layer].float() / scale).to(torch.float8_e4m3fn)
        assert torch.equal(engine.tensors["k"][layer].view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_scale_per_block_from_blocks_that_differ(backend: Backend) -> None:
    """Two stored chunks with a scale each meet in one chunk: equal scales are one, others are refused."""
    geometry = Geometry.kv(1, 2, 8, "float8_e4m3fn", scales="head")
    size = geometry.block_bytes(geometry.full, 4)
    source = torch.zeros(3 * size, dtype=torch.uint8)
    scale_at = 2 * 2 * 4 * 8
    for block in range(3):
        at = block * size + scale_at
        source[at : at + 16].view(torch.float32)[:] = torch.tensor([0.5, 1.0, 2.0, 4.0 if block < 2 else 8.0])
    target = torch.zeros(2 * geometry.block_bytes(geometry.full, 8), dtype=torch.uint8)
    ours = format("canonical").pool(geometry, geometry.full, page=4, blocks=3, buffers=[Buffer.of(source)])
    theirs = format("canonical").pool(geometry, geometry.full, page=8, blocks=2, buffers=[Buffer.of(target)])
    convert(ours.view([0, 1, 2], 0, 12), theirs.view([1, 0], 0, 12), backend=backend)
    for block, last in ((1, 4.0), (0, 8.0)):
        at = block * len(target) // 2 + 2 * 2 * 8 * 8
        assert target[at : at + 16].view(torch.float32).tolist() == [0.5, 1.0, 2.0, last]
    target.zero_()
    with pytest.raises(LayoutError, match="v_scale: there is one value per block, but"):
        convert(ours.view([0, 2], 0, 8), theirs.view([0], 0, 8), backend=backend)
    assert not target.any()
