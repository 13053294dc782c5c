"""Namespaces, objects and model folders for tests of what identifies and holds KV."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kvlingua.common.container import Container
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.identity.namespace import FP8_DTYPES, KV_DTYPES, PLANES, SCALES_POLICIES, Namespace
from kvlingua.layouts.geometry import Extent

FIELDS: dict[str, Any] = {
    "fingerprint": "ab" * 32,
    "model_config": {"model_type": "llama", "rms_norm_eps": 1e-6, "nested": {"list": [1, 2.5, None, True]}},
    "overrides": {},
    "rope": {"type": "default", "theta": 10000.0, "rotary_dim": 8},
    "rope_order": "half",
    "compute_dtype": "float32",
    "weight_format": "safetensors",
    "quantization": None,
    "kv_dtype": "float16",
    "scales_policy": "none",
    "layers": 3,
    "kv_heads": 4,
    "planes": {"k": 8, "v": 6},
    "chunk_tokens": 4,
    "heads_per_shard": 1,
    "layers_per_shard": 2,
    "lora": None,
}

# What must be so for the other value of a field to be possible.
BASES: dict[str, dict[str, Any]] = {"scales_policy": {"kv_dtype": "float8_e4m3fn"}}
# Another value of each field that a namespace may have.
CHANGES: dict[str, Any] = {
    "fingerprint": "ba" * 32,
    "model_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "nested": {"list": [1, 2.5, None, True]}},
    "overrides": {"rms_norm_eps": 1e-5},
    "rope": {"type": "default", "theta": 500000.0, "rotary_dim": 8},
    "rope_order": "interleaved",
    "compute_dtype": "bfloat16",
    "weight_format": "gguf",
    "quantization": "fp8",
    "kv_dtype": "bfloat16",
    "scales_policy": "tensor",
    "layers": 4,
    "kv_heads": 8,
    "planes": {"k": 16, "v": 6},
    "chunk_tokens": 8,
    "heads_per_shard": 2,
    "layers_per_shard": 3,
    "lora": "cd" * 32,
}


def namespace(**changes: Any) -> Namespace:
    return Namespace(**(FIELDS | changes))


def stored(container: Container, chunk_index: int = 1) -> tuple[bytearray, bytes]:
    """An object of a container, with bytes that all differ from their neighbours, and its chain digest."""
    tokens = range((chunk_index + 1) * container.namespace.chunk_tokens)
    digest = chain_digests(tokens, container.namespace.chunk_tokens)[chunk_index]
    written = bytearray(container.object_bytes)
    head, data = memoryview(written)[: container.header_bytes], memoryview(written)[container.header_bytes :]
    data[:] = bytes((7 * place + place // 251) % 256 for place in range(container.data_bytes))
    container.write_header(head, digest, chunk_index, data)
    return written, digest


@st.composite
def containers(draw: st.DrawFn) -> Container:
    """Small models with any shard grid, and any union of whole shards of them."""
    heads_per_shard, head_shards = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 4)))
    layers, names, kv_dtype = draw(st.integers(1, 5)), draw(st.sampled_from(PLANES)), draw(st.sampled_from(KV_DTYPES))
    policy = draw(st.sampled_from(SCALES_POLICIES)) if kv_dtype in FP8_DTYPES else "none"
    if "latent" in names:
        heads_per_shard = head_shards = 1
    one = namespace(
        layers=layers,
        kv_heads=heads_per_shard * head_shards,
        heads_per_shard=heads_per_shard,
        layers_per_shard=draw(st.integers(1, layers)),
        planes={name: draw(st.integers(1, 9)) for name in names},
        chunk_tokens=draw(st.integers(1, 5)) if policy == "none" else 4,  # scales must be aligned
        kv_dtype=kv_dtype,
        scales_policy=policy,
        rope_order="none",
        rope={},
    )
    return Container(one, draw(extents(one)))


def extents(one: Namespace) -> st.SearchStrategy[Extent]:
    """Unions of whole shards."""
    heads = sorted({*range(0, one.kv_heads, one.heads_per_shard), one.kv_heads})
    layers = sorted({*range(0, one.layers, one.layers_per_shard), one.layers})

    def pair(ends: list[int]) -> st.SearchStrategy[tuple[int, int]]:
        return st.lists(st.sampled_from(ends), min_size=2, max_size=2, unique=True).map(
            lambda two: (min(two), max(two))
        )

    return st.tuples(pair(heads), pair(layers)).map(lambda two: Extent(*two[0], *two[1]))


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
    "transformers_version": "5.19.0",
}


def model_folder(path: Path, config: dict[str, Any] | None = None, weights: bytes = b"weights") -> Path:
    """A folder with config.json and one weight file; what is in the file isn't looked into."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (path / "model.safetensors").write_bytes(weights)
    return path
