"""Write the golden files of version 1 anew: `python -m tests.golden.make`. They are frozen: it changes nothing.

v1/keys.json: token ids, seeds, chain digests, a namespace and object keys. v1/<name>.safetensors: whole objects. A
second implementation that reads and reproduces them is a right one. v0/ holds an object of the version before, which
nobody reads any more. sglang.json is not made here: it came out of SGLang.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kvlingua.common.container import Container
from kvlingua.common.identity.chain import chain_digests, request_seed
from kvlingua.common.identity.keys import object_key
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import Extent

FOLDER = Path(__file__).parent / "v1"
KEYS = FOLDER / "keys.json"
TOKENS = list(range(100, 116))
CHUNK = 1
FIELDS: dict[str, Any] = {
    "fingerprint": "0123456789abcdef" * 4,
    "model_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "note": 'say "hé"', "rates": [0.1, 1e-7, 2.0, 1e21]},
    "overrides": {},
    "rope": {"type": "default", "theta": 500000.0, "rotary_dim": 4},
    "rope_order": "half",
    "compute_dtype": "bfloat16",
    "weight_format": "safetensors",
    "quantization": None,
    "kv_dtype": "bfloat16",
    "scales_policy": "none",
    "layers": 3,
    "kv_heads": 4,
    "planes": {"k": 4, "v": 2},
    "chunk_tokens": 8,
    "heads_per_shard": 1,
    "layers_per_shard": 2,
}


@dataclass(frozen=True)
class Golden:
    """One golden object: the second chunk of TOKENS, as a writer that holds `extent` stores it."""

    namespace: Namespace
    extent: Extent

    @classmethod
    def of(cls, extent: Extent, **changes: Any) -> "Golden":
        return cls(Namespace(**(FIELDS | changes)), extent)


OBJECTS = {
    "gqa_bfloat16": Golden.of(Extent(2, 4, 0, 3)),
    "mla_bfloat16": Golden.of(
        Extent(0, 1, 0, 2), kv_heads=1, planes={"latent": 16, "rope": 4}, rope_order="interleaved"
    ),
    "float32": Golden.of(Extent(0, 2, 2, 3), kv_dtype="float32", compute_dtype="float32"),
    "float16_partly_rotated": Golden.of(
        Extent(0, 4, 0, 3),
        kv_dtype="float16",
        compute_dtype="float16",
        planes={"k": 8, "v": 8},
        rope_order="interleaved",
        layers_per_shard=3,
    ),
    "float8_e4m3fn_scaled_per_token": Golden.of(Extent(1, 3, 0, 3), kv_dtype="float8_e4m3fn", scales_policy="token"),
    "float8_e5m2_scaled_per_head": Golden.of(Extent(0, 2, 0, 3), kv_dtype="float8_e5m2", scales_policy="head"),
    "float8_e4m3fnuz_scaled_per_tensor": Golden.of(
        Extent(2, 4, 0, 3), kv_dtype="float8_e4m3fnuz", scales_policy="tensor"
    ),
    "float8_e4m3fn_without_scales": Golden.of(Extent(0, 4, 0, 2), kv_dtype="float8_e4m3fn", rope_order="none", rope={}),
}


def value(plane: int, head: int, layer: int, token: int, dim: int) -> int:
    """What stands there: a whole number below 256. plane: its number among the object's, from 0."""
    return (head * 61 + layer * 29 + token * 7 + dim + 128 * plane) % 256


def element(dtype: str, number: int) -> bytes:
    """How it is stored: as that number where it is 16 or 32 bits wide, as one of 112 finite codes where it is 8."""
    if dtype == "float16":
        return struct.pack("<e", number)
    if dtype == "bfloat16":
        return struct.pack("<f", number)[2:]  # the upper half of a float32
    return struct.pack("<f", number) if dtype == "float32" else bytes([number % 112])


def golden_data(golden: Golden) -> bytes:
    """The tensors, plane after plane, `[head, layer, token, dim]`."""

    def elements() -> Iterator[bytes]:
        extent = golden.extent
        for number, plane in enumerate(golden.namespace.geometry.planes):
            heads = range(1) if plane.per == "tensor" else range(extent.head_start, extent.head_stop)
            layers = range(extent.layer_start, extent.layer_stop)
            tokens = range(golden.namespace.chunk_tokens if plane.per == "token" else 1)
            for index in product(heads, layers, tokens, range(plane.width)):
                yield element(plane.dtype, value(number, *index))

    return b"".join(elements())


def golden_object(golden: Golden) -> bytes:
    container = Container(golden.namespace, golden.extent)
    written = memoryview(bytearray(container.object_bytes))
    head, data = written[: container.header_bytes], written[container.header_bytes :]
    data[:] = golden_data(golden)
    digest = chain_digests(TOKENS, golden.namespace.chunk_tokens)[CHUNK]
    container.write_header(head, digest, CHUNK, data)
    return bytes(written)


def golden_keys() -> dict[str, object]:
    """Chains with and without seeds, a namespace and the keys in it."""
    first = OBJECTS["gqa_bfloat16"]
    salted = request_seed("tenant", "salt")
    chains = [
        (TOKENS, 8, b""),
        (TOKENS, 8, salted),
        (TOKENS, 5, b""),
        ([0, (1 << 32) - 1], 1, request_seed(None, "")),
        ([], 64, b""),
    ]
    digests = chain_digests(TOKENS, first.namespace.chunk_tokens)
    return {
        "chains": [
            {
                "tokens": tokens,
                "chunk_tokens": size,
                "seed": seed.hex(),
                "digests": [digest.hex() for digest in chain_digests(tokens, size, seed)],
            }
            for tokens, size, seed in chains
        ],
        "namespace": {"json": first.namespace.json().decode(), "digest": first.namespace.digest},
        "objects": [object_key(first.namespace.digest, digest, first.extent) for digest in digests],
    }


if __name__ == "__main__":
    for name, golden in OBJECTS.items():
        (FOLDER / f"{name}.safetensors").write_bytes(golden_object(golden))
    KEYS.write_text(json.dumps(golden_keys(), indent=1, ensure_ascii=False) + "\n")
