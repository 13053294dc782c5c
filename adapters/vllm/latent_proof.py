"""A check, at every start, of what this vLLM is known to get wrong in latent attention (MLA): the norms and rotary
embeddings of the model that it has loaded are given what that attention gives them.

It gives them parts of longer rows. vLLM's rotary operator for CPUs takes keys that lie so for dense (seen in 0.30 to
0.32): token 1 is rotated as token 9, and what is kept isn't the model's KV. Whether that operator runs depends on
settings of vLLM's and on the model, so it isn't guessed from them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from kvlingua.common.errors import UnsupportedError

TOKENS = 16
REMEDY = 'start it without --enforce-eager, or with --compilation-config \'{"custom_ops": ["-rotary_embedding"]}\''


def check_latents(model: Any, layers: Sequence[Any]) -> None:
    """Raise UnsupportedError unless each of these attention layers of the loaded model is given what it should be.

    Computes a few tokens in every layer; changes nothing that the model uses.
    """
    around = {id(getattr(module, "mla_attn", None)): module for module in model.modules()}
    for layer in layers:
        try:
            right = _is_right(around[id(layer)])
        except (KeyError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedError(
                "mla", f"vLLM's latent attention (MLA) can't be asked what it keeps: {error!r}"
            ) from None
        if not right:
            raise UnsupportedError(
                "mla", f"this vLLM, as it is set up, computes keys of latent attention (MLA) wrongly: {REMEDY}"
            )


@torch.no_grad()
def _is_right(attention: Any) -> bool:
    """Whether the module around an attention layer normalises latents and rotates queries and keys as if each token's
    lay by themselves."""
    rotary, table = attention.rotary_emb, attention.rotary_emb.cos_sin_cache
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=numbers).to(table.dtype)

    positions = torch.randint(0, len(table), (TOKENS,), generator=numbers)
    widths = [attention.q_lora_rank or 0, attention.kv_lora_rank, attention.qk_rope_head_dim]
    projected = random(TOKENS, sum(widths))
    q_latents, latents, keys = projected.split(widths, dim=-1)
    queries = random(TOKENS, attention.num_heads, attention.qk_head_dim)[..., attention.qk_nope_head_dim :]
    keys = keys.unsqueeze(1)
    rotated = [_rotated(part, table[positions]) for part in (queries, keys)]  # before the operator writes over them
    norms = [(attention.kv_a_layernorm, latents), (attention.q_a_layernorm, q_latents)]
    normal = [(norm(part), norm(part.contiguous())) for norm, part in norms if norm is not None]
    found = rotary(positions, queries, keys)
    return all(_close(*pair) for pair in [*normal, *zip(found, rotated, strict=True)])


def _rotated(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[token, head, dim] with each pair of neighbouring dims turned by its angle, whose cosines and then sines are
    [token, dim]."""
    cosines, sines = angles.float().unsqueeze(1).chunk(2, dim=-1)
    first, second = heads.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cosines - second * sines, second * cosines + first * sines), dim=-1).flatten(-2)


def _close(found: torch.Tensor, right: torch.Tensor) -> bool:
    """But for rounding, which depends on the order of operations."""
    bound = 16 * torch.finfo(found.dtype).eps
    return found.shape == right.shape and torch.allclose(found.float(), right.float(), rtol=bound, atol=bound)
