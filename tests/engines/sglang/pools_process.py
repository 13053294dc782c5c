"""SGLang's real pools, described by the adapter: bytes go in and out where SGLang itself writes and reads."""

import json
from array import array
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MHATokenToKVPoolFP4, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from kvlingua.adapters.sglang.ranks import Ranks
from kvlingua.adapters.sglang.views import blocks_of, describe_host_pool, describe_pool
from kvlingua.common.errors import KVLinguaError
from kvlingua.layouts.convert import convert
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Geometry
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool

LAYERS, HEADS, DIM, TOKENS = 3, 2, 32, 150
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pool_of(page: int, dtype: torch.dtype, **changes: Any) -> Any:
    size = {"size": 512, "head_num": HEADS, "head_dim": DIM, "layer_num": LAYERS}
    return MHATokenToKVPool(**(size | changes), page_size=page, dtype=dtype, device="cpu", enable_memory_saver=False)


def contiguous(geometry: Geometry, tensors: list[torch.Tensor]) -> Pool:
    buffers = [Buffer.of(tensor) for tensor in tensors]
    return format("hf").pool(geometry, geometry.full, page=TOKENS, blocks=1, buffers=buffers)


def rows_of(page: int) -> torch.Tensor:
    """Slots of TOKENS tokens in pages of random order, the last one partly filled."""
    pages = torch.randperm(512 // page, generator=torch.Generator().manual_seed(page))[: -(-TOKENS // page)] + 1
    return (pages[:, None] * page + torch.arange(page)).reshape(-1)[:TOKENS]


def copies(page: int, dtype: str) -> dict[str, Any]:
    """Both directions through the adapter's view, compared with SGLang's own tensors at the slots."""
    kv, geometry = pool_of(page, DTYPES[dtype]), Geometry.kv(LAYERS, HEADS, DIM, dtype)
    pool, rows = describe_pool(kv, geometry, page), rows_of(page)
    shape = 2 * LAYERS, HEADS, TOKENS, DIM
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    into = pool.view(blocks_of(rows, page), 0, TOKENS)
    convert(contiguous(geometry, list(wanted)).view(array("q", [0]), 0, TOKENS), into)
    places = [(wanted[2 * layer + plane].transpose(0, 1), plane, layer) for layer, plane in PLACES]
    written = all(torch.equal(at(kv, plane, layer, rows), tokens) for tokens, plane, layer in places)
    back = torch.zeros_like(wanted)
    start = 48  # within a page of 64, at the edge of one of 16
    table = blocks_of(rows[start // page * page :], page, start // page * page)
    part = contiguous(geometry, list(back)).view(array("q", [0]), start, TOKENS)
    convert(pool.view(table, start, TOKENS), part)
    read = torch.equal(back[:, :, start:], wanted[:, :, start:]) and not back[:, :, :start].any()
    others = torch.ones(512 + page, dtype=torch.bool)
    others[rows] = False
    untouched = all(not at(kv, plane, layer, others.nonzero().flatten()).any() for layer, plane in PLACES)
    return {"layout": pool.layout.name, "written": written, "read": read, "untouched": untouched}


PLACES = [(layer, plane) for layer in range(LAYERS) for plane in (0, 1)]


def at(kv: Any, plane: int, layer: int, rows: torch.Tensor) -> torch.Tensor:
    """[token, head, dim] at the slots `rows`, as SGLang defines them."""
    buffer = (kv.k_buffer, kv.v_buffer)[plane][layer]
    if kv.kv_cache_layout == "hnd":
        return buffer[rows // kv.page_size, :, rows % kv.page_size]
    return buffer[rows]


def refusal(kv: Any, page: int = 16, **changes: Any) -> str:
    shape = {"layers": LAYERS, "kv_heads": HEADS, "head_dim": DIM, "dtype": "bfloat16"}
    try:
        describe_pool(kv, Geometry.kv(**(shape | changes)), page)
    except KVLinguaError as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def transposed(kv: Any) -> Any:
    """The same shape and type, but the tensors' axes lie in another order."""
    kv.k_buffer = [buffer.clone().transpose(1, 2).contiguous().transpose(1, 2) for buffer in kv.k_buffer]
    return kv


def one_layer_elsewhere(kv: Any) -> Any:
    wide = torch.zeros(512 + 16, HEADS, 2 * DIM, dtype=torch.bfloat16)
    kv.v_buffer[1] = wide[:, :, :DIM]
    return kv


def hosts() -> dict[str, str]:
    """How HiCache's host pools are described, or why not."""
    bf16 = torch.bfloat16
    device = pool_of(16, bf16)
    pools = {layout: host_of(device, layout) for layout in HOSTS}
    pools |= {"other dtype": host_of(pool_of(16, torch.float16), HOSTS[0])}
    pools["transposed"] = host_of(device, HOSTS[0])
    pools["transposed"].kv_buffer = pools["transposed"].kv_buffer.transpose(3, 4).contiguous().transpose(3, 4)
    geometry = Geometry.kv(LAYERS, HEADS, DIM, "bfloat16")
    found = {}
    for name, host in pools.items():
        try:
            pool = describe_host_pool(host, device, geometry, 16, geometry.full)
            found[name] = f"{pool.layout.name} {pool.blocks}"
        except KVLinguaError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


HOSTS = ("layer_first", "page_first", "page_first_direct", "page_head", "page_unified")


def host_of(device: Any, layout: str) -> Any:
    """Of 5 pages."""
    return MHATokenToKVPoolHost(
        device.get_device_pool_infos()[0].buffer_info,
        host_to_device_ratio=1.0,
        host_size=0,
        page_size=16,
        layout=layout,
        pin_memory=False,
        device="cpu",
        device_capacity_tokens=80,
        start_layer=0,
        end_layer=LAYERS,
        host_token_capacity=80,
    )


def slot_refusal(rows: torch.Tensor, page: int) -> str:
    try:
        blocks_of(rows, page)
    except KVLinguaError as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


def heads_of(kv_heads: int, ranks: int) -> list[Any]:
    """Which heads each of the ranks holds, or why there is no answer."""
    geometry = Geometry.kv(LAYERS, kv_heads, DIM, "bfloat16")
    try:
        extents = [Ranks(rank, ranks).extent(geometry) for rank in range(ranks)]
    except KVLinguaError as error:
        return [f"{type(error).__name__}: {error}"]
    return [[extent.head_start, extent.head_stop] for extent in extents]


def main() -> None:
    bf16 = torch.bfloat16
    size = {"size": 512, "page_size": 16, "dtype": bf16, "layer_num": LAYERS, "device": "cpu"}
    swa_layers = {"swa_attention_layer_ids": [0], "full_attention_layer_ids": [1, 2]}
    swa = {"size_swa": 32, "head_num": HEADS, "head_dim": DIM, **swa_layers}
    others = {
        "mla": MLATokenToKVPool(**size, kv_lora_rank=64, qk_rope_head_dim=16, enable_memory_saver=False),
        "fp8": pool_of(16, torch.float8_e4m3fn),
        "fp4": MHATokenToKVPoolFP4(
            **(size | {"dtype": torch.float4_e2m1fn_x2}), head_num=HEADS, head_dim=DIM, enable_memory_saver=False
        ),
        "swa": SWAKVPool(**{key: value for key, value in size.items() if key != "layer_num"}, **swa),
        "part of the layers": pool_of(16, bf16, layer_num=2, start_layer=1),
        "other heads": pool_of(16, bf16, head_num=1),
        "other dim": pool_of(16, bf16, head_dim=64),
        "other dtype": pool_of(16, torch.float16),
        "transposed": transposed(pool_of(16, bf16)),
        "one layer elsewhere": one_layer_elsewhere(pool_of(16, bf16)),
    }
    rows = rows_of(16)
    swapped = rows.clone()
    swapped[[3, 4]] = rows[[4, 3]]
    report = {
        "copies": {f"{page} {dtype}": copies(page, dtype) for page in (1, 16, 64) for dtype in DTYPES},
        "refused": {name: refusal(kv) for name, kv in others.items()},
        "hosts": hosts(),
        "ranks": {f"{heads} on {ranks}": heads_of(heads, ranks) for heads, ranks in ((4, 2), (4, 4), (2, 4), (1, 2))},
        "other page": refusal(pool_of(16, bf16), page=64),
        "asymmetric": refusal(pool_of(16, bf16, v_head_dim=16)),
        "slots": {
            "swapped": slot_refusal(swapped, 16),
            "shifted": slot_refusal(rows + 1, 16),
            "padding page": slot_refusal(torch.arange(16), 16),
            "padding slot": slot_refusal(torch.tensor([5, 0, 7]), 1),
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
