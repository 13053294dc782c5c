"""What must be equal for two engines to share KV: everything that can change it, in one value with one digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.canonical_json import JSONObject
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.layouts.geometry import ITEMSIZE, Geometry

FORMAT_VERSION = 0
MAX_NAMESPACE_BYTES = 256 << 10
ROPE_ORDERS = ("half", "interleaved", "none")
_MAX_COUNT = 1 << 16
_MAX_TEXT = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Namespace:
    """The first part of every key. Two namespaces are equal if their canonical JSON is equal, to the byte.

    fingerprint: of the weights. model_config: config.json without the fields that can't change KV; overrides: what
    the engine was told to use instead. rope: the normalised state of the rotary embedding; rope_order: which dims are
    rotated together. layers, kv_heads, k_dim, v_dim: of the whole model. chunk_tokens: tokens per chunk.
    heads_per_shard, layers_per_shard: the grid on which objects begin and end. lora: digest of an adapter's files and
    scaling.

    Raises IdentityError for a value that no namespace can have.
    """

    fingerprint: str
    model_config: JSONObject
    overrides: JSONObject
    rope: JSONObject
    rope_order: str
    compute_dtype: str
    weight_format: str
    quantization: str | None
    kv_dtype: str
    scales_policy: str
    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int
    chunk_tokens: int
    heads_per_shard: int
    layers_per_shard: int
    lora: str | None = None
    format_version: int = FORMAT_VERSION
    _json: bytes = field(init=False, repr=False)
    _digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _FIELDS}
        _check(values)
        try:
            data = canonical_json.encode(values, max_bytes=MAX_NAMESPACE_BYTES)
            values = canonical_json.decode(data, max_bytes=MAX_NAMESPACE_BYTES)
        except ValueError as error:
            raise IdentityError(f"a namespace that has no canonical JSON: {error}") from None
        for name in (
            "model_config",
            "overrides",
            "rope",
        ):  # copies: what the caller does to its own changes nothing here
            object.__setattr__(self, name, values[name])
        object.__setattr__(self, "_json", data)
        object.__setattr__(self, "_digest", hashlib.sha256(data).hexdigest())

    def json(self) -> bytes:
        """The canonical JSON."""
        return self._json

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return self._digest

    @property
    def geometry(self) -> Geometry:
        """Of the whole model: planes k and v."""
        return Geometry.kv(self.layers, self.kv_heads, self.k_dim, self.kv_dtype, self.v_dim)

    @property
    def grid(self) -> ShardGrid:
        """The shards of the whole model."""
        return ShardGrid(self.kv_heads, self.layers, self.heads_per_shard, self.layers_per_shard)

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> "Namespace":
        """Read one back. Raises IdentityError unless `data` is the canonical JSON of one of this version."""
        try:
            values = canonical_json.decode(data, max_bytes=MAX_NAMESPACE_BYTES)
        except ValueError as error:
            raise IdentityError(f"not a namespace: {error}") from None
        if not isinstance(values, dict) or values.keys() != set(_FIELDS):
            raise IdentityError(f"not a namespace: its fields are {', '.join(_FIELDS)}")
        namespace = cls(**values)
        if namespace.json() != bytes(data):
            raise IdentityError("not a namespace: its JSON is not in canonical form")
        return namespace

    def differences(self, other: "Namespace") -> list[str]:
        """One line for each field that differs, such as `kv_dtype: bfloat16 here, float32 there`."""
        here, there = (
            dict(_leaves("", canonical_json.decode(one.json(), max_bytes=MAX_NAMESPACE_BYTES))) for one in (self, other)
        )
        names = sorted(here.keys() | there.keys())
        return [
            f"{name}: {here.get(name, 'nothing')} here, {there.get(name, 'nothing')} there"
            for name in names
            if here.get(name) != there.get(name)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Namespace) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._digest)


_FIELDS = tuple(each.name for each in fields(Namespace) if each.init)
_TEXTS = ("fingerprint", "weight_format", "scales_policy")
_OPTIONAL_TEXTS = ("quantization", "lora")
_COUNTS = ("layers", "kv_heads", "k_dim", "v_dim", "chunk_tokens", "heads_per_shard", "layers_per_shard")


def _check(values: Mapping[str, Any]) -> None:
    if values["format_version"] != FORMAT_VERSION or isinstance(values["format_version"], bool):
        raise IdentityError(f"format version {values['format_version']!r}: this kvlingua reads {FORMAT_VERSION}")
    for name in _TEXTS + _OPTIONAL_TEXTS:
        value = values[name]
        if value is None and name in _OPTIONAL_TEXTS:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
            raise IdentityError(f"{name} is a text of 1 to {_MAX_TEXT} characters, not {str(value)[:40]!r}")
    for name in _COUNTS:
        value = values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_COUNT:
            raise IdentityError(f"{name} is an integer from 1 to {_MAX_COUNT}, not {str(value)[:40]!r}")
    for name in ("model_config", "overrides", "rope"):
        if not isinstance(values[name], Mapping):
            raise IdentityError(f"{name} is an object, not {type(values[name]).__name__}")
    for name, known in (("compute_dtype", ITEMSIZE), ("kv_dtype", ITEMSIZE), ("rope_order", ROPE_ORDERS)):
        if not isinstance(values[name], str) or values[name] not in known:
            raise IdentityError(f"{name} is one of {', '.join(known)}, not {str(values[name])[:40]!r}")
    if values["kv_heads"] % values["heads_per_shard"] or values["layers_per_shard"] > values["layers"]:
        grid = f"{values['heads_per_shard']} heads, {values['layers_per_shard']} layers"
        model = f"{values['kv_heads']} kv heads and {values['layers']} layers"
        raise IdentityError(f"the shard grid ({grid}) doesn't fit a model of {model}")


def _leaves(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and (value or "." not in name):
        return [leaf for key in value for leaf in _leaves(f"{name}.{key}" if name else key, value[key])]
    text = canonical_json.encode(value, max_bytes=MAX_NAMESPACE_BYTES).decode()
    return [(name, value if isinstance(value, str) else text)]
