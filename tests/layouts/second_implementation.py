"""kvlingua's stored objects and engines' memory, read a second time: from docs/format/*.md alone, in numpy."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

Array = np.ndarray[Any, Any]
TYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "float8_e4m3fn": ("F8_E4M3", 1)}
TYPES |= {"float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2": ("F8_E5M2", 1)}  # safetensors' word, bytes


def chain(tokens: list[int], size: int, seed: bytes) -> list[str]:
    """The digests of the whole chunks of a prompt."""
    digests = [seed]
    for at in range(0, len(tokens) - size + 1, size):
        digests.append(hashlib.sha256(digests[-1] + struct.pack(f"<{size}I", *tokens[at : at + size])).digest())
    return [digest.hex() for digest in digests[1:]]


def safetensors(path: Path) -> tuple[bytes, dict[str, str], dict[str, Any], int]:
    """The file, its metadata, its tensors, and where the data begins."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = json.loads(data[8:start])
    return data, tensors.pop("__metadata__"), tensors, start


def numbers(raw: Array, dtype: str) -> Array:
    """Little-endian elements as float32."""
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("float32", "float16"):
        return raw.view("<f4" if dtype == "float32" else "<f2").astype(np.float32)
    bits, bias = {"float8_e4m3fn": (3, 7), "float8_e4m3fnuz": (3, 8), "float8_e5m2": (2, 15)}[dtype]
    exponent, fraction = np.arange(128) >> bits, np.arange(128) % (1 << bits) / (1 << bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if dtype == "float8_e5m2":
        value[124:] = np.inf, np.nan, np.nan, np.nan
    value = np.concatenate([value, -value])
    value[{"float8_e4m3fn": [127, 255], "float8_e4m3fnuz": [128], "float8_e5m2": []}[dtype]] = np.nan
    return value.astype(np.float32)[raw]


def parts(namespace: dict[str, Any], heads: range, layers: range, shared: bool) -> list[tuple[slice, slice]]:
    """Heads and layers of a tensor, counted from its first, that have checksums of their own."""
    wide, deep, first = namespace["heads_per_shard"], namespace["layers_per_shard"], layers.start
    rows = [slice(0, 1)] if shared else [slice(head, head + wide) for head in range(0, len(heads), wide)]
    cuts = [0, *(layer - first for layer in layers[1:] if layer % deep == 0), len(layers)]
    return list(product(rows, map(slice, cuts, cuts[1:])))


def read_object(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """A stored object's metadata and, per plane, its values [head, layer, token, dim]. Asserts that all is right."""
    data, metadata, _, start = safetensors(path)
    namespace = json.loads(metadata["namespace"])
    assert (metadata["format"], metadata["format_version"], namespace["format_version"]) == ("kvlingua", "1", 1)
    assert hashlib.sha256(metadata["namespace"].encode()).hexdigest() == metadata["namespace_digest"]
    heads, layers = (range(*map(int, metadata[name].split("-"))) for name in ("heads", "layers"))
    chunk, policy, widths = namespace["chunk_tokens"], namespace["scales_policy"], namespace["planes"]
    names = [name for name in ("k", "v", "latent", "rope") if name in widths]
    header: dict[str, Any] = {"__metadata__": metadata}
    values, at = {}, 0
    for name in names + [f"{name}_scale" for name in names if policy != "none"]:
        scale = name not in names
        shared = scale and policy == "tensor"
        dtype = "float32" if scale else namespace["kv_dtype"]
        tokens = 1 if scale and policy != "token" else chunk
        shape = [1 if shared else len(heads), len(layers), tokens, 1 if scale else widths[name]]
        raw = np.frombuffer(data, np.uint8, prod(shape) * TYPES[dtype][1], start + at)
        header[name] = {"data_offsets": [at, at + len(raw)], "dtype": TYPES[dtype][0], "shape": shape}
        shards = [raw.reshape(*shape[:2], -1)[part] for part in parts(namespace, heads, layers, shared)]
        assert "".join(xxhash.xxh3_128_hexdigest(s.tobytes()) for s in shards) == metadata[f"checksums_{name}"], name
        values[name] = numbers(raw, dtype).reshape(shape)
        at += len(raw)
    line = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    predicted = struct.pack("<Q", start - 8) + line + b" " * (-(8 + len(line)) % 64)
    assert data[:start] == predicted
    assert len(data) == start + at
    own = metadata["header_checksum"]
    assert xxhash.xxh3_128_hexdigest(predicted.replace(own.encode(), b"0" * 32)) == own
    assert int(metadata["first_token"]) % chunk == 0
    return metadata, {name: values[name] * values.get(f"{name}_scale", np.float32(1)) for name in names}


def nest(
    words: list[str], counts: dict[str, int], itemsize: int, given: dict[str, int], plane: str, inner: int
) -> tuple[list[tuple[str, int, int, int]], int]:
    """`words` (slowest first) around `inner` bytes, and the bytes of all of it. A word is (axis, step, size, stride):
    index i along the axis adds i // step % size * stride."""
    found = []
    for text in reversed(words):
        axis, half, tile, in_bytes = re.findall(r"([a-z]+)([/%]?)(\d*)(B?)", text)[0]
        step = int(tile or 1) // (itemsize if in_bytes else 1)
        size = step if half == "%" else counts[axis] // step
        stride = given.get(f"{plane}.{text}", given.get(text, inner)) if size > 1 else inner
        found.append((axis, step if half == "/" else 1, size, stride))
        inner = size * stride
    return found, inner


def read_cache(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """A dump of an engine's memory: what it says of itself and, per plane, the bits [layer, head, token, dim]."""
    data, metadata, tensors, begin = safetensors(path)
    cache = json.loads(metadata["cache"])
    left, _, right = cache["spec"].rpartition("|")
    separate, shared = left.split(), right.partition("(")[0].split()
    planes = {plane["name"]: plane for plane in cache["planes"]}
    regions = {name: axes.split() for name, axes in re.findall(r"\(([^:]+):([^)]*)\)", right)} or {"*": []}
    order = [n for name in regions for n in ([p for p in planes if p not in regions] if name == "*" else [name])]
    layer, head = (np.arange(stop - start) for start, stop in (cache["extent"][axis] for axis in ("layers", "heads")))
    position = np.arange(cache["start"], cache["stop"])
    block = np.array(cache["table"])[position // cache["page"]][:, None]
    counts = {"layer": len(layer), "head": len(head), "block": cache["blocks"], "token": cache["page"]}
    apart, inside, found, start = "plane" in separate, {}, {}, 0
    for name in order:  # where its region starts, and its words
        itemsize, sizes = planes[name]["itemsize"], counts | {"dim": planes[name]["width"]}
        texts = (shared if apart else []) + regions.get(name, regions.get("*", []))
        words, size = nest(texts, sizes, itemsize, cache["strides"], name, itemsize)
        inside[name] = start, words
        start += 0 if apart else size
    unit = next(plane["itemsize"] for name, plane in planes.items() if not name.endswith("_scale"))
    around = [] if apart else nest(shared, counts, unit, cache["strides"], "", start)[0]
    begins = np.array([begin + tensors[str(number)]["data_offsets"][0] for number in range(len(tensors))])
    raw = np.frombuffer(data, np.uint8)
    for number, (name, plane) in enumerate(planes.items()):
        dim, half = np.arange(plane["width"]), plane["rope"]["width"] // 2
        if plane["rope"]["order"] == "interleaved":  # it is read in the order `half`
            dim[: 2 * half] = [2 * i if i < half else 2 * (i - half) + 1 for i in range(2 * half)]
        axes = np.ix_(layer, head, position % cache["page"], dim)
        index = dict(zip(("layer", "head", "token", "dim"), axes, strict=True)) | {"block": block, "plane": number}
        buffer = axes[0] * 0
        for axis in separate:
            buffer = buffer * (len(planes) if axis == "plane" else len(layer)) + index[axis]
        at = begins[buffer] + inside[name][0]
        for axis, step, size, stride in inside[name][1] + around:
            at = at + index[axis] // step % size * stride
        found[name] = sum(raw[at + byte].astype(np.int64) << 8 * byte for byte in range(plane["itemsize"]))
    return cache, found
