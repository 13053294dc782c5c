"""The tensor-parallel ranks of one engine: which heads each holds, and how they come to one decision.

SGLang runs a scheduler per rank. All take the same requests in the same order and decide alike, each for itself; a
decision that differs, such as how much of a prompt is there, is a deadlock or a wrong token. What a rank alone can
know (an answer of the store, a load that ended) therefore becomes a decision only through `agree`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.ranks import Split
from kvlingua.layouts.geometry import Extent, Geometry


@dataclass(frozen=True)
class Ranks:
    """rank, size: this one, and how many there are. group: their process group on CPUs; None if there is but one."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of(cls, context: Any) -> Ranks:
        """Of SGLang's TreeCacheBuildContext. The group is the one SGLang's own caches agree in."""
        size = int(context.tp_size)
        return cls(int(context.tp_rank), size, context.params.tp_cache_group if size > 1 else None)

    def extent(self, geometry: Geometry) -> Extent:
        """Which heads of the model this rank holds, in all layers; no other rank has them.

        Raises UnsupportedError if they can't be shared evenly: on CPUs SGLang then gives the last ranks heads of zeros,
        which are none of the model's (`configs/update_config.py`: adjust_config_with_unaligned_cpu_tp).
        """
        if geometry.kv_heads % self.size:
            raise UnsupportedError(
                "tp_size",
                f"SGLang adds empty heads to {geometry.kv_heads} kv heads on {self.size} ranks: use a --tp-size that "
                f"divides {geometry.kv_heads}",
            )
        return Split.of(geometry.kv_heads, geometry.layers, self.size, rule="sglang").extent(self.rank, 0)

    def agree(self, values: Sequence[int]) -> list[int]:
        """The least of each value over all ranks, which must give as many, and must all come here."""
        if self.group is None or not values:
            return list(values)
        least = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN, group=self.group)
        return [int(value) for value in least]

    def same(self, text: str | None) -> bool:
        """Whether all ranks have this text; None is like no other. All must come here."""
        number = -1 if text is None else int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
        least, most = self.agree([number, -number])
        return number >= 0 and least == -most
