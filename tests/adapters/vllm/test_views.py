"""Registered tensors become a pool only if they are what the layout's row says; all else is refused by name."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvlingua.adapters.vllm.views import layout_name, ordered_layers, pool_of, static_scales
from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.geometry import Extent, Geometry, Rope

LAYERS, HEADS, DIM, PAGE, BLOCKS = 12, 2, 32, 16, 5
GEOMETRY = Geometry.kv(LAYERS, HEADS, DIM, "float32")


class Layer:
    """Stands for one of vLLM's attention layers, whose kernels depend on the machine."""

    def __init__(self, backend: str, isa: str | None) -> None:
        self._backend = backend
        if isa is not None:
            self.isa = isa
        self.impl: object = None

    def get_attn_backend(self) -> type:
        name = self._backend
        return type("Backend", (), {"get_name": staticmethod(lambda: name)})


def tensors(**changes: Any) -> list[torch.Tensor]:
    shape = changes.pop("shape", (BLOCKS, HEADS, PAGE, 2 * DIM))
    return [torch.zeros(shape, **changes) for _ in range(LAYERS)]


def pool(found: list[torch.Tensor]) -> Any:
    return pool_of("vllm_cpu_vec", found, GEOMETRY, page=PAGE, blocks=BLOCKS)


def test_where_a_number_lies() -> None:
    """Layer 3, block 2, head 1: K[dim 5, token 7] and V[token 7, dim 5] of the region, as the kernels keep them."""
    found = tensors()
    k, v = pool(found).planes
    region = ((2 * HEADS) + 1) * PAGE * 2 * DIM
    base = found[3].data_ptr()
    assert (k.token, k.dim) == (((PAGE, 4),), ((DIM, 4 * PAGE),))
    assert (v.token, v.dim) == (((PAGE, 4 * DIM),), ((DIM, 4),))
    assert k.bases[3] + 2 * k.block + k.head == base + 4 * region
    assert v.bases[3] + 2 * v.block + v.head == base + 4 * (region + PAGE * DIM)


def test_blocks_with_something_between_them() -> None:
    wide = [torch.zeros(BLOCKS, 3 * HEADS, PAGE, 2 * DIM)[:, :HEADS] for _ in range(LAYERS)]
    assert pool(wide).planes[0].block == 3 * HEADS * PAGE * 2 * DIM * 4


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (tensors(dtype=torch.uint8), "torch.uint8"),
        (tensors(dtype=torch.bfloat16), "torch.bfloat16"),
        (tensors(shape=(BLOCKS, HEADS, 2 * PAGE, 2 * DIM)), "expected"),
        (tensors(shape=(BLOCKS + 1, HEADS, PAGE, 2 * DIM)), "expected"),
        (tensors(device="meta"), "meta"),
        ([*tensors()[1:], torch.zeros(BLOCKS, PAGE, HEADS, 2 * DIM).transpose(1, 2)], "strides"),
        ([torch.zeros(BLOCKS, PAGE, HEADS, 2 * DIM).transpose(1, 2) for _ in range(LAYERS)], "strides"),
        ([torch.zeros(BLOCKS, HEADS, PAGE, 2 * DIM)] * LAYERS, "share memory"),
    ],
    ids=["fp8", "dtype", "block size", "blocks", "device", "one layer differs", "tokens apart", "shared"],
)
def test_what_is_refused(found: list[torch.Tensor], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        pool(found)


def test_layers_are_ordered_by_number() -> None:
    names = [f"model.layers.{number}.self_attn.attn" for number in range(LAYERS)]
    shuffled = sorted(names)
    assert shuffled != names
    assert ordered_layers(shuffled, dict.fromkeys(names), LAYERS) == names
    for wrong in (
        names[1:],
        [*names[:-1], "model.layers.99.self_attn.attn"],
        [*names, "draft.layers.12.self_attn.attn"],
    ):
        with pytest.raises(UnsupportedError, match="numbered"):
            ordered_layers(wrong, dict.fromkeys(wrong), LAYERS)
    with pytest.raises(UnsupportedError, match="numbered"):
        ordered_layers(names, dict.fromkeys(names[1:]), LAYERS)


def test_the_kernel_in_use_decides_the_layout() -> None:
    assert layout_name([Layer("CPU_ATTN", "vec")] * 2, "LBHNC") == "vllm_cpu_vec"
    assert layout_name([Layer("CPU_ATTN", "vec16")] * 2, "LBHNC") == "vllm_cpu_vec16"
    unknown = [("CPU_ATTN", "amx"), ("CPU_ATTN", "neon"), ("CPU_ATTN", None), ("FLASH_ATTN", None)]
    for backend, isa in unknown:
        with pytest.raises(UnsupportedError, match=f"{backend}/{isa}"):
            layout_name([Layer(backend, isa)], "LBHNC")
    with pytest.raises(UnsupportedError, match="--attention-backend CPU_MLA"):
        layout_name([Layer("AMX_MLA", None)], "LBHNC")
    for order in ("BLHNC", None):
        with pytest.raises(UnsupportedError, match="packs a block"):
            layout_name([Layer("CPU_ATTN", "vec")], order)
    with pytest.raises(UnsupportedError, match="several kinds"):
        layout_name([Layer("CPU_ATTN", "vec"), Layer("CPU_ATTN", "vec16")], "LBHNC")


def test_the_kernel_may_be_the_implementation_s() -> None:
    """As before vLLM 0.30."""
    layer = Layer("CPU_ATTN", None)
    layer.impl = type("Impl", (), {"isa": "vec16"})()
    assert layout_name([layer], "LBHNC") == "vllm_cpu_vec16"


def test_fp8_with_the_layers_own_scales() -> None:
    geometry = Geometry.kv(LAYERS, HEADS, DIM, "float8_e4m3fn", scales="tensor")
    layers = [SimpleNamespace(_k_scale_float=1.0 + n, _v_scale_float=0.5) for n in range(LAYERS)]
    scales = static_scales(layers, geometry)
    found = pool_of("vllm_cpu_vec", tensors(dtype=torch.uint8), geometry, page=PAGE, blocks=BLOCKS, scales=scales)
    assert found.fixed == {"k_scale", "v_scale"}
    held = [[ctypes.c_float.from_address(buffer.pointer).value for buffer in scales[p]] for p in ("k_scale", "v_scale")]
    assert held == [[1.0 + n for n in range(LAYERS)], [0.5] * LAYERS]
    assert static_scales(layers, GEOMETRY) == {}
    with pytest.raises(UnsupportedError, match=r"expected .* of uint8"):
        pool_of("vllm_cpu_vec", tensors(), geometry, page=PAGE, blocks=BLOCKS, scales=scales)


def test_latents_are_rows_with_the_rotated_key_as_pairs() -> None:
    geometry = Geometry.mla(LAYERS, 48, 16, "float32", rope=Rope("half", 16))
    rows = [torch.zeros(BLOCKS, 1, PAGE, 64) for _ in range(LAYERS)]
    name = layout_name([Layer("CPU_MLA", None)] * 2, "LBHNC")
    found = pool_of(name, rows, geometry, page=PAGE, blocks=BLOCKS)
    assert found.geometry.plane("rope").rope == Rope("interleaved", 16)
    assert found.planes[1].bases[2] == rows[2].data_ptr() + 48 * 4


def test_the_heads_and_layers_of_a_part() -> None:
    part = pool_of("vllm_cpu_vec", tensors()[:4], Geometry.kv(LAYERS, 2 * HEADS, DIM, "float32"), Extent(2, 4, 3, 7),
                   page=PAGE, blocks=BLOCKS)  # fmt: skip
    assert part.extent == Extent(2, 4, 3, 7)
