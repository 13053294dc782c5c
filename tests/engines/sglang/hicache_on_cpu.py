"""A plug-in of SGLang's, for tests only: HiCache on a CPU, whose host pool SGLang can only pin and copy to on GPUs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

NAME = "hicache_on_cpu"


def install(folder: Path) -> None:
    """Make `folder` one from which SGLang loads this plug-in, if it is on PYTHONPATH beside this clone."""
    metadata = folder / f"{NAME}-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{NAME} = {__name__}:register\n")


def register() -> None:
    from sglang.srt.mem_cache.pool_host import mha
    from sglang.srt.mem_cache.pool_host.base import HostKVCache

    original = HostKVCache.__init__

    @functools.wraps(original)
    def without_pinning(self: Any, **arguments: Any) -> None:
        original(self, **(arguments | {"pin_memory": False}))

    HostKVCache.__init__ = without_pinning
    mha.transfer_kv_direct = copy_rows


def copy_rows(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """What SGLang's kernel of that name does: rows [token] of each layer, from some places to others."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices.to(torch.int64)] = source[src_indices.to(torch.int64)]
