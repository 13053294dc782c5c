"""Whether the kernel in use packs a block as the row says is found out by asking it. Real ones: tests/engines/vllm."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvlingua.adapters.vllm.kernel_proof import check_kernel
from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.geometry import Geometry, Rope

HEADS, DIM, PAGE = 2, 32, 16
FP8 = Geometry.kv(4, HEADS, DIM, "float8_e4m3fn", scales="tensor")
PLAIN = Geometry.kv(4, HEADS, DIM, "bfloat16")
LATENT = Geometry.mla(4, 48, DIM, "float32", rope=Rope("half", DIM))
Write = Callable[..., None]


def as_vec(layer: Any, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """As vLLM's kernels vec do: per block and head K as [dim, token], then V as [token, dim]."""
    assert key.dtype == value.dtype == torch.bfloat16, "what the layer computes with"
    k, v = cache.view(-1, HEADS, 2, PAGE * DIM).unbind(2)
    block, at = slots // PAGE, slots % PAGE
    for plane, new, scale in ((k, key, layer._k_scale_float), (v, value, layer._v_scale_float)):
        made = new / scale
        made = made.to(torch.float8_e4m3fn).view(torch.uint8) if cache.dtype == torch.uint8 else made.to(cache.dtype)
        shape = (-1, HEADS, DIM, PAGE) if plane is k else (-1, HEADS, PAGE, DIM)
        if plane is k:
            plane.view(shape)[block, :, :, at] = made
        else:
            plane.view(shape)[block, :, at] = made


def as_rows(layer: Any, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """As the registered tensor's shape would have it."""
    cache[slots // PAGE, :, slots % PAGE] = torch.cat([key, value], dim=-1).to(cache.dtype)


def other_scale(layer: Any, *rest: torch.Tensor) -> None:
    as_vec(SimpleNamespace(_k_scale_float=layer._k_scale_float, _v_scale_float=1.0), *rest)


def unknown(*_: Any) -> None:
    raise RuntimeError("Unsupported CPU attention configuration")


def layer(write: Write) -> Any:
    impl = SimpleNamespace(do_kv_cache_update=write)
    return SimpleNamespace(impl=impl, dtype=torch.bfloat16, _k_scale_float=0.3, _v_scale_float=2.0)


@pytest.mark.parametrize("geometry", [FP8, PLAIN], ids=["fp8", "bfloat16"])
def test_what_packs_as_the_row_says(geometry: Geometry) -> None:
    one = layer(as_vec)
    if geometry is PLAIN:
        one._k_scale_float = one._v_scale_float = 1.0
    check_kernel("vllm_cpu_vec", one, geometry, HEADS, PAGE)


@pytest.mark.parametrize(
    ("write", "geometry", "message"),
    [
        (as_rows, PLAIN, "doesn't pack a block as vllm_cpu_vec"),
        (other_scale, FP8, "doesn't pack a block as vllm_cpu_vec"),
        (unknown, FP8, "Unsupported CPU attention"),
    ],
)
def test_what_does_not(write: Write, geometry: Geometry, message: str) -> None:
    one = layer(write)
    if geometry is PLAIN:
        one._k_scale_float = one._v_scale_float = 1.0
    with pytest.raises(UnsupportedError, match=message):
        check_kernel("vllm_cpu_vec", one, geometry, HEADS, PAGE)


def test_latents_and_rotated_keys() -> None:
    def write(latents: torch.Tensor, keys: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, *_: object) -> None:
        assert latents.shape[1:] == (48,)
        assert keys.shape[1:] == (1, DIM)
        parts = [latents, keys[:, 0]]
        cache.view(-1, 48 + DIM)[slots] = torch.cat(parts if in_order else parts[::-1], dim=-1)

    one = SimpleNamespace(impl=SimpleNamespace(do_kv_cache_update=write), kv_cache_dtype="auto", _k_scale=None)
    in_order = True
    check_kernel("vllm_mla", one, LATENT, 1, PAGE)
    in_order = False
    with pytest.raises(UnsupportedError, match="doesn't pack a block as vllm_mla"):
        check_kernel("vllm_mla", one, LATENT, 1, PAGE)
