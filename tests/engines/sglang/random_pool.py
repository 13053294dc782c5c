"""A pool of SGLang's with random numbers, for processes that test the adapter without an engine."""

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from kvlingua.layouts.geometry import Geometry

PAGE, ROWS = 16, 512


def random_pool(model: Geometry, heads: int) -> MHATokenToKVPool:
    """All layers, and so many of the kv heads, of a model in float32; ROWS rows in pages of PAGE."""
    kv = MHATokenToKVPool(
        size=ROWS,
        page_size=PAGE,
        dtype=torch.float32,
        head_num=heads,
        head_dim=model.planes[0].width,
        layer_num=model.layers,
        device="cpu",
        enable_memory_saver=False,
    )
    for buffer in (*kv.k_buffer, *kv.v_buffer):
        buffer.normal_()
    return kv
