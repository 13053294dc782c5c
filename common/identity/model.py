"""What an engine runs, read from the model's folder: the same description whichever engine asks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity import canonical_json, rope
from kvlingua.common.identity.architectures import Architecture, architecture_of
from kvlingua.common.identity.canonical_json import JSONObject
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.common.identity.namespace import COMPUTE_DTYPES, FP8_DTYPES, Namespace
from kvlingua.common.identity.weight_files import model_folder, weight_files
from kvlingua.common.regular_file import only_regular
from kvlingua.layouts.geometry import Geometry, Order, Per, Rope

# Fields of config.json that are no part of a namespace, and why they can't change KV.
IGNORED_REASONS: Mapping[str, str] = {
    "_name_or_path": "where a copy came from",
    "transformers_version": "what wrote the file",
    "dtype": "the dtype that is computed in is a field of its own",
    "torch_dtype": "the dtype that is computed in is a field of its own",
    "use_cache": "whether KV is kept, not what it is",
    "return_dict": "the form of a return value",
    "output_attentions": "what is returned besides",
    "output_hidden_states": "what is returned besides",
    "initializer_range": "random weights before training",
    "bos_token_id": "token ids are in the chain",
    "eos_token_id": "token ids are in the chain",
    "pad_token_id": "token ids are in the chain",
    "sep_token_id": "token ids are in the chain",
    "id2label": "names of a classifier's outputs",
    "label2id": "names of a classifier's outputs",
    "problem_type": "a classifier's loss",
    "tokenizer_class": "token ids are in the chain",
    "task_specific_params": "defaults of generation",
}
IGNORED_FIELDS = frozenset(IGNORED_REASONS)
_MAX_CONFIG_BYTES = 4 << 20
_MAX_IDENTITY_BYTES = 64 << 10
_MAX_COUNT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model as every engine must run it to share KV; all of a namespace but the weights' fingerprint.

    config: config.json without `IGNORED_FIELDS` and the rope fields. overrides: what the engine uses instead, where
    it differs. weight_files: name -> file, sorted by name.
    """

    folder: Path
    config: JSONObject
    overrides: JSONObject
    rope: JSONObject
    rope_order: Order
    geometry: Geometry
    compute_dtype: str
    weight_format: str
    quantization: str | None
    weight_files: Mapping[str, Path]

    def namespace(self, fingerprint: str, *, chunk_tokens: int, layers_per_shard: int | None = None) -> Namespace:
        """The namespace of this model with weights of this fingerprint. Raises IdentityError."""
        grid = ShardGrid.of(self.geometry, layers_per_shard)
        return Namespace(
            fingerprint=fingerprint,
            model_config=self.config,
            overrides=self.overrides,
            rope=self.rope,
            rope_order=self.rope_order,
            compute_dtype=self.compute_dtype,
            weight_format=self.weight_format,
            quantization=self.quantization,
            kv_dtype=self.geometry.dtype,
            scales_policy=self.geometry.scales_per or "none",
            layers=self.geometry.layers,
            kv_heads=self.geometry.kv_heads,
            planes={plane.name: plane.width for plane in self.geometry.numbers},
            chunk_tokens=chunk_tokens,
            heads_per_shard=grid.heads_per_shard,
            layers_per_shard=grid.layers_per_shard,
        )


def describe_model(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    compute_dtype: str,
    kv_dtype: str,
    scales: Per | None = None,
    windows: Collection[str] = (),
    load_format: str = "auto",
    quantization: str | None = None,
    revision: str | None = None,
) -> ModelDescription:
    """Describe the model in a folder, or a hub id's local snapshot.

    `overrides`: fields of config.json that the engine was told to use otherwise; one that repeats config.json is none.
    Dtypes are those of `COMPUTE_DTYPES`; the KV's is one of `FP8_DTYPES` where `scales` says what of it shares a scale.
    windows: the families whose layers with a sliding window are understood.
    Raises UnsupportedError for whatever isn't proved to give the same KV in all engines.
    """
    if quantization is not None:
        raise UnsupportedError("quantization", f"quantised weights ({quantization}) are not supported yet")
    kv_dtypes = COMPUTE_DTYPES if scales is None else FP8_DTYPES
    for what, dtype, dtypes in (("compute", compute_dtype, COMPUTE_DTYPES), ("KV cache", kv_dtype, kv_dtypes)):
        if dtype not in dtypes:
            known = ", ".join(dtypes)
            raise UnsupportedError("dtype", f"{what} dtype {dtype} is not supported: use one of {known}")
    folder = model_folder(path, revision)
    on_disk = _read_config(folder / "config.json")
    changed = _changed(on_disk, overrides or {})
    config = _effective(on_disk, changed)
    row = architecture_of(config, windows)
    state, geometry = _kept(config, row, kv_dtype, scales)
    apart = IGNORED_FIELDS | rope.FIELDS
    return ModelDescription(
        folder=folder,
        config={key: value for key, value in on_disk.items() if key not in apart},
        overrides=changed,
        rope=state,
        rope_order=row.rope_order,
        geometry=geometry,
        compute_dtype=compute_dtype,
        weight_format="safetensors",
        quantization=None,
        weight_files=weight_files(folder, load_format),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=only_regular) as file:
            config = canonical_json.decode(file.read(_MAX_CONFIG_BYTES + 1), max_bytes=_MAX_CONFIG_BYTES)
    except OSError as error:
        raise UnsupportedError("model_files", f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise UnsupportedError("model_files", f"{path} can't be used: {error}") from None
    if not isinstance(config, dict):
        raise UnsupportedError("model_files", f"{path} is not a JSON object")
    return config


def _changed(on_disk: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that say something else than the file, and can matter."""
    try:
        data = canonical_json.encode(overrides, max_bytes=_MAX_IDENTITY_BYTES)
        plain: dict[str, Any] = canonical_json.decode(data, max_bytes=_MAX_IDENTITY_BYTES)
    except ValueError as error:
        raise UnsupportedError("overrides", f"overrides that can't be written as JSON: {error}") from None
    return {
        key: value
        for key, value in plain.items()
        if key not in IGNORED_FIELDS and not (key in on_disk and _same(value, on_disk[key]))
    }


def _same(one: object, other: object) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    first, second = (canonical_json.encode(value, max_bytes=_MAX_CONFIG_BYTES) for value in (one, other))
    return first == second


def _effective(on_disk: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that every engine ends up with. Raises UnsupportedError where engines would differ."""
    for key, value in changed.items():
        before = on_disk.get(key)
        if isinstance(before, Mapping) and not (isinstance(value, Mapping) and before.keys() <= value.keys()):
            # One engine replaces the whole, another merges; with all its keys given both come to the same.
            raise UnsupportedError(
                "overrides", f"an override of {key} must repeat all of its keys: {', '.join(before)}"
            )
    config = {**on_disk, **changed}
    said = rope.FIELDS & changed.keys()
    if said:
        new = changed.get("rope_parameters")
        if said != {"rope_parameters"} or not isinstance(new, Mapping) or not {"rope_type", "rope_theta"} <= new.keys():
            raise UnsupportedError(
                "overrides",
                f"engines don't understand an override of {', '.join(sorted(said))} alike: override rope_parameters "
                "as a whole, with rope_type and rope_theta, or write it into config.json",
            )
        for key in ("rope_theta", "partial_rotary_factor"):  # every engine lets rope_parameters win
            if key in new:
                config.pop(key, None)
    return config


def _kept(
    config: Mapping[str, Any], row: Architecture, kv_dtype: str, scales: Per | None
) -> tuple[dict[str, Any], Geometry]:
    """The state of the rotary embedding, and what is kept of a token."""
    if row.latent:
        width = _count(config, row, "qk_rope_head_dim")
        state = rope.normalised(config, row, width)
        rotated = Rope(row.rope_order, state["rotary_dim"])
        layers, latent = _count(config, row, "num_hidden_layers"), _count(config, row, "kv_lora_rank")
        return state, Geometry.mla(layers, latent, width, kv_dtype, rope=rotated, scales=scales)
    layers, kv_heads, head_dim = _sizes(config, row)
    state = rope.normalised(config, row, head_dim)
    rotated = Rope(row.rope_order, state["rotary_dim"])
    return state, Geometry.kv(layers, kv_heads, head_dim, kv_dtype, scales=scales, rope=rotated)


def _sizes(config: Mapping[str, Any], row: Architecture) -> tuple[int, int, int]:
    """Layers, kv heads, and elements of a head."""
    layers = _count(config, row, "num_hidden_layers")
    heads = _count(config, row, "num_attention_heads")
    hidden = _count(config, row, "hidden_size")
    kv_heads = heads
    if row.kv_heads == "required" or (row.kv_heads == "optional" and config.get("num_key_value_heads") is not None):
        kv_heads = _count(config, row, "num_key_value_heads")
    if row.head_dim == "required" or (row.head_dim == "optional" and config.get("head_dim") is not None):
        head_dim = _count(config, row, "head_dim")
    else:
        head_dim = hidden // heads
        if head_dim * heads != hidden or config.get("head_dim", head_dim) not in (None, head_dim):
            raise UnsupportedError(
                "head_dim",
                f"hidden_size {hidden}, {heads} heads and head_dim {config.get('head_dim')} don't fit each other",
            )
    if heads % kv_heads:
        raise UnsupportedError("kv_heads", f"{heads} heads can't share {kv_heads} kv heads evenly")
    return layers, kv_heads, head_dim


def _count(config: Mapping[str, Any], row: Architecture, name: str) -> int:
    key = row.names.get(name, name)
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _MAX_COUNT:
        stated = "is missing" if value is None else f"is {value!r}"
        raise UnsupportedError("config", f"{key} {stated}: config.json must give an integer from 1 to {_MAX_COUNT}")
    return value
