"""Structured initialisation: weights that already hold the circuit which looks a fact up.

From plain random weights training stalls at "some value of the right relation": the circuit (gather the words before a
value; match them with the question's; copy the value) pays only when all of it is there. So it is laid into the weights
roughly, and training finds the rest:

1. Embedding rows of equal norm, orthogonal to a shared direction `u`, plus `u` at the same size. Llama has no biases,
   and a head that looks at a position needs something that is there at every token.
2. Positional heads on the fastest rotary pairs: layer 0 looks 1, 2, 3 and 4 tokens back, layer 1 looks 1 and 2 back.
   What they find goes to subspaces of its own, the same in both layers for 1 and 2 back.
3. Match-and-copy heads in layers 1 to 3: queries and keys compare those subspaces on the slow rotary pairs, which
   don't care about the distance; the output copies the value found.
4. What is still random starts small, and every W_q and W_k gets a little noise: a row that is zero in both never gets
   a gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

FAST_PAIRS = 3  # rotary pairs that the positional heads use
SLOW = 0.05  # rotary pairs with a lower frequency (radians a token) are used to match
SHARPNESS = 7.5  # of the positional heads: the size of a query and of a key
GATHER_GAIN = 0.25  # of the words 1 and 2 back in the residual stream; half of it for 3 and 4 back
MATCH_GAIN = 0.9
COPY_GAIN = 0.5
NOISE = 0.02


@dataclass(frozen=True)
class _Directions:
    """Where the circuit keeps what, in the residual stream."""

    constant: Tensor  # u: [hidden], of length 1; orthogonal to all the others
    back: tuple[Tensor, Tensor, Tensor, Tensor]  # where the words 1, 2, 3, 4 back go: [hidden, head_dim], orthonormal
    content: Tensor  # [head_dim, hidden]: what of a word is carried there


@torch.no_grad()
def initialise(model: LlamaForCausalLM, probe: Tensor, seed: int) -> None:
    """Write the circuit into `model`, freshly made with random weights.

    `probe`: int64 [batch, tokens >= 30], a batch of texts; tells how large `u` is after a layer's norm.
    """
    _Initialiser(model, probe, seed).run()


class _Initialiser:
    def __init__(self, model: LlamaForCausalLM, probe: Tensor, seed: int) -> None:
        config = model.config
        self._model, self._probe = model, probe
        self._generator = torch.Generator().manual_seed(seed)
        self._hidden, self._head_dim = config.hidden_size, config.head_dim
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._std = config.initializer_range
        theta = config.rope_parameters["rope_theta"]
        pairs = torch.arange(0, self._head_dim, 2).float()
        self._frequencies = 1.0 / theta ** (pairs / self._head_dim)  # radians a token, [head_dim / 2]
        self._slow = (self._frequencies < SLOW).float().repeat(2)[:, None]  # [head_dim, 1]
        self._directions = self._draw_directions()

    def run(self) -> None:
        self._shape_embedding()
        for layer in self._model.model.layers:
            layer.mlp.down_proj.weight *= 0.15
            layer.self_attn.o_proj.weight *= 0.3
        one, two, three, four = self._directions.back
        self._gather(layer=0, kv_head=0, outputs={1: one, 2: two}, gain=GATHER_GAIN)
        self._gather(layer=0, kv_head=1, outputs={3: three, 4: four}, gain=GATHER_GAIN / 2)
        self._gather(layer=1, kv_head=0, outputs={1: one, 2: two}, gain=GATHER_GAIN)
        self._match(layer=1, kv_head=1)
        self._match(layer=1, kv_head=2)
        for layer in range(2, len(self._model.model.layers)):
            self._match(layer, kv_head=0)
            self._match(layer, kv_head=1)
        for layer in self._model.model.layers:
            for weight in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
                weight += self._normal(*weight.shape) * NOISE

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _draw_directions(self) -> _Directions:
        constant = self._normal(self._hidden)
        constant /= constant.norm()
        basis = self._orthonormal(constant, self._hidden - 1)
        one, two, three = (basis[:, i * self._head_dim : (i + 1) * self._head_dim] for i in range(3))
        content = self._orthonormal(constant, self._head_dim).T
        # Not enough room for a fourth subspace beside the words' own: 4 back shares that of 3 back, in another order.
        return _Directions(constant, (one, two, three, three.flip(1)), content)

    def _orthonormal(self, constant: Tensor, columns: int) -> Tensor:
        """[hidden, columns], random orthonormal columns that are orthogonal to `constant` too."""
        basis: Tensor = torch.linalg.qr(torch.cat([constant[:, None], self._normal(self._hidden, columns)], dim=1))[0]
        return basis[:, 1:]

    def _shape_embedding(self) -> None:
        weight, u = self._model.model.embed_tokens.weight, self._directions.constant
        norm = self._std * self._hidden**0.5
        weight -= torch.outer(weight @ u, u)
        weight *= norm / weight.norm(dim=1, keepdim=True).clamp_min(1e-6)
        weight += u * norm

    def _gather(self, layer: int, kv_head: int, outputs: dict[int, Tensor], gain: float) -> None:
        """Make the query heads of `kv_head` look back by each of `outputs`' distances and write what stands there."""
        states = self._model.model(input_ids=self._probe, use_cache=False, output_hidden_states=True).hidden_states
        block, u = self._model.model.layers[layer], self._directions.constant
        size = SHARPNESS / (block.input_layernorm(states[layer])[:, 5:30] @ u).mean()
        fast = (torch.arange(self._head_dim // 2) < FAST_PAIRS).float()
        attention, rows = block.self_attn, self._rows(kv_head)
        attention.k_proj.weight[rows] = torch.outer(torch.cat([fast, 0 * fast]) * size, u)
        attention.v_proj.weight[rows] = self._directions.content
        for i, (distance, output) in enumerate(outputs.items()):
            angle = -distance * self._frequencies
            turned = torch.cat([torch.cos(angle) * fast, torch.sin(angle) * fast])
            rows = self._rows(kv_head * self._group + i)
            attention.q_proj.weight[rows] = torch.outer(turned * size, u)
            attention.o_proj.weight[:, rows] = output * gain

    def _match(self, layer: int, kv_head: int) -> None:
        """Make the query heads of `kv_head` look for tokens with the same words before them, and copy those tokens."""
        one, two = self._directions.back[:2]
        shape = (self._head_dim, self._head_dim)
        compare = (self._normal(*shape) @ one.T + self._normal(*shape) @ two.T) / self._head_dim**0.5
        compare = MATCH_GAIN * compare * self._slow
        copy = self._normal(self._head_dim, self._hidden) / self._hidden**0.5
        for taken in (one, two, self._directions.constant[:, None]):
            copy = copy - (copy @ taken) @ taken.T
        attention, rows = self._model.model.layers[layer].self_attn, self._rows(kv_head)
        attention.k_proj.weight[rows] = compare + self._fast_noise()
        attention.v_proj.weight[rows] = copy
        for i in range(self._group):
            rows = self._rows(kv_head * self._group + i)
            attention.q_proj.weight[rows] = compare + self._fast_noise()
            attention.o_proj.weight[:, rows] = COPY_GAIN * copy.T

    def _fast_noise(self) -> Tensor:
        noise: Tensor = self._normal(self._head_dim, self._hidden) * 0.03 * (1 - self._slow)
        return noise

    def _rows(self, head: int) -> slice:
        return slice(head * self._head_dim, (head + 1) * self._head_dim)
