"""What must be equal for two engines to share KV: everything that can change it, in one value with one digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity import canonical_json
from kvlingua.common.identity.canonical_json import JSONObject
from kvlingua.common.identity.extents import ShardGrid
from kvlingua.layouts.geometry import ITEMSIZE, Geometry, Order, Per, Rope

FORMAT_VERSION = 1
MAX_NAMESPACE_BYTES = 256 << 10
ROPE_ORDERS = ("half", "interleaved", "none")
COMPUTE_DTYPES = ("float32", "float16", "bfloat16")
FP8_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
KV_DTYPES = COMPUTE_DTYPES + FP8_DTYPES
SCALES_POLICIES = ("none", "tensor", "head", "token")
PLANES = (("k", "v"), ("latent", "rope"))  # what a model keeps per head; the latter for multi-head latent attention
_MAX_COUNT = 1 << 16
_MAX_TEXT = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Namespace:
    """The first part of every key. Two namespaces are equal if their canonical JSON is equal, to the byte.

    fingerprint: of the weights. model_config: config.json without the fields that can't change KV; overrides: what
    the engine was told to use instead. rope: the normalised state of the rotary embedding; rope_order: which dims of
    plane k (of plane rope, where there is one) are rotated together. scales_policy: what of the kv cache shares a
    scale. layers, kv_heads, planes (elements per head, by name): of the whole model. chunk_tokens: tokens per chunk.
    heads_per_shard, layers_per_shard: the grid on which objects begin and end. lora: digest of an adapter's files and
    scaling.

    Raises IdentityError for a value that no namespace can have.
    """

    fingerprint: str
    model_config: JSONObject
    overrides: JSONObject
    rope: JSONObject
    rope_order: Order
    compute_dtype: str
    weight_format: str
    quantization: str | None
    kv_dtype: str
    scales_policy: Literal["none"] | Per
    layers: int
    kv_heads: int
    planes: Mapping[str, int]
    chunk_tokens: int
    heads_per_shard: int
    layers_per_shard: int
    lora: str | None = None
    format_version: int = FORMAT_VERSION
    _json: bytes = field(init=False, repr=False)
    _digest: str = field(init=False, repr=False)
    _geometry: Geometry = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in _FIELDS}
        _check(values)
        try:
            data = canonical_json.encode(values, max_bytes=MAX_NAMESPACE_BYTES)
            values = canonical_json.decode(data, max_bytes=MAX_NAMESPACE_BYTES)
        except ValueError as error:
            raise IdentityError(f"a namespace that has no canonical JSON: {error}") from None
        for name in _OBJECTS:  # copies: what the caller does to its own changes nothing here
            object.__setattr__(self, name, values[name])
        object.__setattr__(self, "_json", data)
        object.__setattr__(self, "_digest", hashlib.sha256(data).hexdigest())
        object.__setattr__(self, "_geometry", self._made_geometry())

    def json(self) -> bytes:
        """The canonical JSON."""
        return self._json

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return self._digest

    @property
    def geometry(self) -> Geometry:
        """Of the whole model, its planes in the order in which objects hold them: numbers, then their scales."""
        return self._geometry

    def _made_geometry(self) -> Geometry:
        rope = Rope() if self.rope_order == "none" else Rope(self.rope_order, self.rope["rotary_dim"])
        scales = None if self.scales_policy == "none" else self.scales_policy
        if "latent" in self.planes:
            latent, rotated = self.planes["latent"], self.planes["rope"]
            return Geometry.mla(self.layers, latent, rotated, self.kv_dtype, rope=rope, scales=scales)
        k, v = self.planes["k"], self.planes["v"]
        return Geometry.kv(self.layers, self.kv_heads, k, self.kv_dtype, v, scales=scales, rope=rope)

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
        if isinstance(values, dict) and "format_version" in values:
            _check_version(values["format_version"])
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
_OBJECTS = ("model_config", "overrides", "rope", "planes")
_TEXTS = ("fingerprint", "weight_format")
_OPTIONAL_TEXTS = ("quantization", "lora")
_COUNTS = ("layers", "kv_heads", "chunk_tokens", "heads_per_shard", "layers_per_shard")
_CHOICES = {
    "rope_order": ROPE_ORDERS,
    "compute_dtype": COMPUTE_DTYPES,
    "kv_dtype": KV_DTYPES,
    "scales_policy": SCALES_POLICIES,
}


def _check_version(version: object) -> None:
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise IdentityError(f"format version {str(version)[:20]}: this kvlingua reads {FORMAT_VERSION}")


def _check(values: Mapping[str, Any]) -> None:
    _check_version(values["format_version"])
    for name in _TEXTS + _OPTIONAL_TEXTS:
        value = values[name]
        if value is None and name in _OPTIONAL_TEXTS:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
            raise IdentityError(f"{name} is a text of 1 to {_MAX_TEXT} characters, not {str(value)[:40]!r}")
    for name in _COUNTS:
        _check_count(name, values[name])
    for name in _OBJECTS:
        if not isinstance(values[name], Mapping):
            raise IdentityError(f"{name} is an object, not {type(values[name]).__name__}")
    for name, known in _CHOICES.items():
        if values[name] not in known:
            raise IdentityError(f"{name} is one of {', '.join(known)}, not {str(values[name])[:40]!r}")
    if values["kv_heads"] % values["heads_per_shard"] or values["layers_per_shard"] > values["layers"]:
        grid = f"{values['heads_per_shard']} heads, {values['layers_per_shard']} layers"
        model = f"{values['kv_heads']} kv heads and {values['layers']} layers"
        raise IdentityError(f"the shard grid ({grid}) doesn't fit a model of {model}")
    _check_planes(values)
    _check_rope(values)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_COUNT:
        raise IdentityError(f"{name} is an integer from 1 to {_MAX_COUNT}, not {str(value)[:40]!r}")


def _check_planes(values: Mapping[str, Any]) -> None:
    planes, policy = values["planes"], values["scales_policy"]
    if not any(planes.keys() == set(known) for known in PLANES):
        known = " or ".join(" and ".join(names) for names in PLANES)
        raise IdentityError(f"planes are {known}, not {', '.join(map(str, planes))[:40]!r}")
    for name, width in planes.items():
        _check_count(f"the width of plane {name}", width)
    if "latent" in planes and values["kv_heads"] != 1:
        raise IdentityError(f"a latent is one kv head, not {values['kv_heads']}")
    if policy == "none":
        return
    if values["kv_dtype"] not in FP8_DTYPES:
        raise IdentityError(f"scales ({policy}) belong to fp8 numbers, not to {values['kv_dtype']}")
    row = values["chunk_tokens"] * sum(planes.values())
    if row % ITEMSIZE["float32"]:  # the numbers' bytes per head and layer: their scales, float32, follow them
        widths = " + ".join(f"{name} {width}" for name, width in planes.items())
        raise IdentityError(
            f"scales would not be aligned: chunks of {values['chunk_tokens']} tokens x ({widths}) take {row} bytes per "
            "head and layer, which must be a multiple of 4: use another chunk_tokens"
        )


def _check_rope(values: Mapping[str, Any]) -> None:
    order, rope, planes = values["rope_order"], values["rope"], values["planes"]
    if order == "none":
        if rope:
            raise IdentityError("rope is empty where rope_order is none")
        return
    width, plane = rope.get("rotary_dim"), planes.get("rope", planes.get("k"))
    _check_count("rotary_dim", width)
    if width % 2 or width > plane:
        raise IdentityError(f"{width} of {plane} elements can't be rotated in pairs")


def _leaves(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and (value or "." not in name):
        return [leaf for key in value for leaf in _leaves(f"{name}.{key}" if name else key, value[key])]
    text = canonical_json.encode(value, max_bytes=MAX_NAMESPACE_BYTES).decode()
    return [(name, value if isinstance(value, str) else text)]
