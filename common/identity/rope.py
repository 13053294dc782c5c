"""The state of a model's rotary embedding, normalised from the spellings of config.json.

transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`. Two configurations that mean the
same give the same state. What would depend on a sequence's length (dynamic NTK, longrope), or isn't known to be
computed alike by all engines, is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.architectures import Architecture

# The fields of config.json that this state replaces in a namespace.
FIELDS = frozenset(
    {"rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "rotary_dim"}
)
_LAYER_KINDS = ("full_attention", "sliding_attention")
# Spellings of older or foreign configurations, which some engines read and others don't.
_FOREIGN = (
    "rope_pct",
    "rotary_pct",
    "rotary_emb_base",
    "rotary_emb_fraction",
    "rope_ratio",
    "rope_type",
    "mrope_section",
)
# Per type: what must be there, and what may be with the value that counts if it isn't.
_TYPES: Mapping[str, tuple[tuple[str, ...], Mapping[str, float]]] = {
    "default": ((), {}),
    "linear": (("factor",), {}),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), {}),
    "yarn": (("factor", "original_max_position_embeddings"), {"beta_fast": 32, "beta_slow": 1}),
}


def normalised(config: Mapping[str, Any], row: Architecture, head_dim: int) -> dict[str, Any]:
    """`type`, `theta`, `rotary_dim` (rotated elements of a head) and the type's own numbers. UnsupportedError."""
    for key in _FOREIGN:
        if config.get(key) is not None:
            raise _refusal(f"{key} in config.json is not understood")
    if row.rope_by_layer:
        return _by_layer(config, row, head_dim)
    if config.get("rope_local_base_freq") is not None:
        raise _refusal(f"rope_local_base_freq has no meaning for a {config['model_type']}")
    if row.theta is not None:
        return _fixed(config, row.theta, head_dim)
    if config.get("rotary_dim") is not None:
        raise _refusal(f"rotary_dim has no meaning for a {config['model_type']}")
    given = _parameters(config)
    kind = given.pop("type")
    if kind not in _TYPES or (kind != "default" and not row.scaled_rope):
        raise _refusal(f"rope type {kind!r} of a {config['model_type']} is not supported")
    state: dict[str, Any] = {"type": kind, "theta": _positive("rope_theta", given.pop("rope_theta", None))}
    state["rotary_dim"] = _rotary_dim(given.pop("partial_rotary_factor", None), row, head_dim)
    required, optional = _TYPES[kind]
    for key in required:
        state[key] = _positive(key, given.pop(key, None))
    for key, default in optional.items():
        state[key] = _positive(key, given.pop(key, default))
    for key in row.rope_flags if kind == "yarn" else ():
        state[key] = given.pop(key, None)
        if type(state[key]) is not bool:
            raise _refusal(f"{key} must be true or false, not {state[key]!r}: readers differ in what they assume")
    if given:
        raise _refusal(f"{', '.join(sorted(given))} of rope type {kind!r} is not known to mean the same in all engines")
    return state


def _by_layer(config: Mapping[str, Any], row: Architecture, head_dim: int) -> dict[str, Any]:
    """One state for each kind of layer; `rotary_dim` is that of both."""
    plain = {key: value for key, value in config.items() if key not in FIELDS}
    given = config.get("rope_parameters")
    if given is None:
        scaling = config.get("rope_scaling")
        if not isinstance(scaling, (Mapping, NoneType)):
            raise _refusal(f"rope_scaling is an object, not {scaling!r}")
        full = {"rope_theta": config.get("rope_theta"), **(scaling or {})}
        given = dict(zip(_LAYER_KINDS, (full, {"rope_theta": config.get("rope_local_base_freq")}), strict=True))
    elif not isinstance(given, Mapping) or given.keys() != set(_LAYER_KINDS):
        raise _refusal(f"rope_parameters of a {config['model_type']} are those of {' and '.join(_LAYER_KINDS)}")
    elif any(config.get(key) is not None for key in FIELDS - {"rope_parameters"}):
        raise _refusal("config.json has both rope_parameters and older fields that say the same: keep the former")
    alike = replace(row, rope_by_layer=False)
    states = {kind: normalised(plain | {"rope_parameters": given[kind]}, alike, head_dim) for kind in _LAYER_KINDS}
    return {"type": "by_layer", "rotary_dim": states["full_attention"]["rotary_dim"], **states}


def _fixed(config: Mapping[str, Any], theta: float, head_dim: int) -> dict[str, Any]:
    """Of a family whose configuration names the rotated width only."""
    for key in FIELDS - {"rotary_dim"}:
        if config.get(key) is not None:
            raise _refusal(f"{key} has no meaning for a {config['model_type']}")
    width = config.get("rotary_dim")
    if type(width) is not int or not 0 < width <= head_dim or width % 2:
        raise _refusal(f"rotary_dim must be an even number up to the head's {head_dim}, not {width!r}")
    return {"type": "default", "theta": theta, "rotary_dim": width}


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters from wherever they stand; what is said twice must be the same."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new is not None and old is not None:
        raise _refusal("config.json has both rope_parameters and rope_scaling: keep one")
    mapping = new if new is not None else old if old is not None else {}
    if not isinstance(mapping, Mapping) or any(isinstance(value, (Mapping, list)) for value in mapping.values()):
        raise _refusal("rope parameters that differ between layers are not supported")
    found = {key: value for key, value in mapping.items() if value is not None}
    kinds = {found.pop(key) for key in ("rope_type", "type") if key in found} or {"default"}
    if len(kinds) != 1:
        raise _refusal(f"the rope type is said twice: {', '.join(map(str, sorted(kinds, key=str)))}")
    for key in ("rope_theta", "partial_rotary_factor"):
        outside = config.get(key)
        if outside is not None and found.setdefault(key, outside) != outside:
            raise _refusal(f"config.json says {key} twice, {outside} and {found[key]}: keep one, or make them equal")
    return found | {"type": kinds.pop()}


def _rotary_dim(factor: object, row: Architecture, head_dim: int) -> int:
    if row.rotary_factor is None:
        if factor is not None and factor != 1:
            raise _refusal(f"partial_rotary_factor {factor!r} for a family that rotates whole heads")
        share = 1.0
    else:
        share = _positive("partial_rotary_factor", row.rotary_factor if factor is None else factor)
    width = int(head_dim * share)
    if width < 2 or width % 2 or width > head_dim:
        raise _refusal(f"{width} of a head's {head_dim} elements can't be rotated")
    return width


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        stated = "is missing" if value is None else f"is {value!r}"
        raise _refusal(f"{name} {stated}: config.json must give a positive number, readers differ in what they assume")
    return value


def _refusal(message: str) -> UnsupportedError:
    return UnsupportedError("rope", message)
