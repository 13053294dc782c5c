"""Whether the model that vLLM has loaded gives latent attention what it should is found out by asking its modules. Real
ones: tests/engines/vllm/test_latent.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvlingua.adapters.vllm.latent_proof import check_latents
from kvlingua.common.errors import UnsupportedError

LATENT, ROPE, NOPE, HEADS, POSITIONS = 48, 16, 8, 3, 64
Rotate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def as_pairs(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    cosines, sines = angles[:, None].chunk(2, dim=-1)
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.empty_like(x)
    turned[..., ::2] = first * cosines - second * sines
    turned[..., 1::2] = second * cosines + first * sines
    return turned


def as_halves(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    (cosines, sines), (first, second) = angles[:, None].chunk(2, dim=-1), x.chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def as_dense(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """In place, as vLLM's operator does with keys: where it takes a token's key to be, as if nothing lay between."""
    if x.shape[1] == 1:
        dense = x.as_strided(x.shape, (x.shape[2], x.shape[2], 1))
        dense.copy_(as_pairs(dense.clone(), angles))
        return x
    return as_pairs(x, angles)


def unturned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    return x


def in_place(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    return x.copy_(as_pairs(x.clone(), angles))


class Rotary(torch.nn.Module):
    def __init__(self, rotate: Rotate, dtype: torch.dtype) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(POSITIONS), 10.0 ** -torch.arange(ROPE // 2))
        self.cos_sin_cache = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
        self._rotate = rotate

    def forward(self, positions: torch.Tensor, *parts: torch.Tensor) -> list[torch.Tensor]:
        return [self._rotate(part, self.cos_sin_cache[positions]) for part in parts]


class Norm(torch.nn.Module):
    def __init__(self, *, dense: bool = False) -> None:
        super().__init__()
        self._dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.as_strided(x.shape, (x.shape[1], 1)) if self._dense else x
        return x * x.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()


class Attention(torch.nn.Module):
    """As vLLM's module around an attention layer names its parts."""

    def __init__(
        self,
        rotate: Rotate = as_pairs,
        norm: Any = None,
        queries: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.mla_attn, self.rotary_emb = torch.nn.Module(), Rotary(rotate, dtype)
        self.kv_a_layernorm = norm or Norm()
        self.q_a_layernorm = None if queries is None else Norm()
        self.q_lora_rank, self.kv_lora_rank, self.num_heads = queries, LATENT, HEADS
        self.qk_nope_head_dim, self.qk_rope_head_dim, self.qk_head_dim = NOPE, ROPE, NOPE + ROPE


def check(*attentions: Attention) -> None:
    check_latents(torch.nn.ModuleList(attentions), [attention.mla_attn for attention in attentions])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rotate", [as_pairs, in_place])
def test_what_is_right(rotate: Rotate, dtype: torch.dtype) -> None:
    one = Attention(rotate, dtype=dtype)
    before = one.rotary_emb.cos_sin_cache.clone()
    check(one, Attention(rotate, queries=24, dtype=dtype))
    assert torch.equal(one.rotary_emb.cos_sin_cache, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotate", [as_dense, as_halves, unturned])
def test_keys_that_are_rotated_wrongly(rotate: Rotate, dtype: torch.dtype) -> None:
    for wrong in (Attention(rotate, dtype=dtype), Attention(rotate, queries=24, dtype=dtype)):
        with pytest.raises(UnsupportedError, match=r"wrongly.*custom_ops.*-rotary_embedding"):
            check(Attention(dtype=dtype), wrong)


def test_latents_that_are_normalised_wrongly() -> None:
    with pytest.raises(UnsupportedError, match="wrongly"):
        check(Attention(norm=Norm(dense=True)))


def test_a_model_that_cannot_be_asked() -> None:
    with pytest.raises(UnsupportedError, match="can't be asked"):
        check_latents(torch.nn.ModuleList([Attention()]), [Attention().mla_attn])
    unrotated = Attention()
    unrotated.rotary_emb = None
    with pytest.raises(UnsupportedError, match="can't be asked"):
        check(unrotated)
