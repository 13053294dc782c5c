"""Write the golden files anew: `python tests/golden/make.py`. Only a new format version is a reason to.

keys.json: token ids, seeds, chain digests, a namespace and object keys. object.safetensors: one whole object. A second
implementation that reproduces both is a right one. sglang.json is not made here: it came out of SGLang.
"""

import json
import struct
from pathlib import Path

from kvlingua.common.container import Container
from kvlingua.common.identity.chain import chain_digests, request_seed
from kvlingua.common.identity.keys import object_key
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.geometry import Extent

FOLDER = Path(__file__).parent
OBJECT = FOLDER / "object.safetensors"
KEYS = FOLDER / "keys.json"
CHUNK = 1
TOKENS = list(range(100, 116))
EXTENT = Extent(2, 4, 0, 3)
NAMESPACE = Namespace(
    fingerprint="0123456789abcdef" * 4,
    model_config={"model_type": "llama", "rms_norm_eps": 1e-5, "note": 'say "hé"', "rates": [0.1, 1e-7, 2.0, 1e21]},
    overrides={},
    rope={"type": "default", "theta": 500000.0, "rotary_dim": 4},
    rope_order="half",
    compute_dtype="bfloat16",
    weight_format="safetensors",
    quantization=None,
    kv_dtype="bfloat16",
    scales_policy="none",
    layers=3,
    kv_heads=4,
    k_dim=4,
    v_dim=2,
    chunk_tokens=8,
    heads_per_shard=1,
    layers_per_shard=2,
)


def value(plane: str, head: int, layer: int, token: int, dim: int) -> int:
    """What the golden object holds: a whole number below 256, which bfloat16 holds exactly."""
    return (head * 61 + layer * 29 + token * 7 + dim + (128 if plane == "v" else 0)) % 256


def golden_data() -> bytes:
    """The tensors, k then v, `[head, layer, token, dim]`; a bfloat16 is the upper half of a float32."""
    return b"".join(
        struct.pack("<f", value(plane, head, layer, token, dim))[2:]
        for plane, width in (("k", NAMESPACE.k_dim), ("v", NAMESPACE.v_dim))
        for head in range(EXTENT.head_start, EXTENT.head_stop)
        for layer in range(EXTENT.layer_start, EXTENT.layer_stop)
        for token in range(NAMESPACE.chunk_tokens)
        for dim in range(width)
    )


def golden_object() -> bytes:
    """The second chunk of TOKENS, as a writer with kv heads 2-4 stores it."""
    container = Container(NAMESPACE, EXTENT)
    written = memoryview(bytearray(container.object_bytes))
    head, data = written[: container.header_bytes], written[container.header_bytes :]
    data[:] = golden_data()
    digest = chain_digests(TOKENS, NAMESPACE.chunk_tokens)[CHUNK]
    container.write_header(head, digest, CHUNK, data)
    return bytes(written)


def golden_keys() -> dict[str, object]:
    """Chains with and without seeds, a namespace and the keys in it."""
    salted = request_seed("tenant", "salt")
    chains = [
        (TOKENS, 8, b""),
        (TOKENS, 8, salted),
        (TOKENS, 5, b""),
        ([0, (1 << 32) - 1], 1, request_seed(None, "")),
        ([], 64, b""),
    ]
    digests = chain_digests(TOKENS, NAMESPACE.chunk_tokens)
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
        "namespace": {"json": NAMESPACE.json().decode(), "digest": NAMESPACE.digest},
        "objects": [object_key(NAMESPACE.digest, digest, EXTENT) for digest in digests],
    }


if __name__ == "__main__":
    OBJECT.write_bytes(golden_object())
    KEYS.write_text(json.dumps(golden_keys(), indent=1, ensure_ascii=False) + "\n")
