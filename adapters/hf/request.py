"""Which calls of `generate` may use the cache. What is understood is listed here; everything else passes through."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from kvlingua.adapters.hf.live_state import DEVICES
from kvlingua.adapters.hf.settings import Settings
from kvlingua.common.errors import UnsupportedError

# Parameters of `generate` that can't change the KV of the prompt, whatever they hold.
_HARMLESS_PARAMETERS = frozenset(
    {"inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"}
)

# Other keyword arguments: the prompt itself, the tokenizer that stop strings need, and a cache, which is looked at.
_HARMLESS_ARGUMENTS = frozenset({"input_ids", "attention_mask", "tokenizer", "past_key_values"})


@dataclass(frozen=True)
class Request:
    """What `generate` was asked to continue, and how.

    rows: one list of token ids for each row of the batch, without padding. pads: tokens of padding on the left of
    each row. width: columns of the batch; `pads[i] + len(rows[i]) == width`. repeats: rows of the cache that each row
    of the batch takes, side by side (beams, or several samples). beams: whether rows of the cache change places.
    static: the columns of a static cache that is wanted instead of a growing one. past: an empty cache of the
    caller's, if there is one. ending: token ids that rows which have ended are filled up with. changes: what `generate`
    must be given instead of what it was.
    """

    rows: tuple[list[int], ...]
    pads: tuple[int, ...]
    width: int
    repeats: int = 1
    beams: bool = False
    static: int | None = None
    past: Cache | None = None
    ending: frozenset[int] = frozenset()
    changes: Mapping[str, Any] = field(default_factory=dict)


def read_request(model: Any, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
    """What the call `generate(*args, **kwargs)` of `model` asks for.

    Raises UnsupportedError, with a reason code, for a call whose KV isn't proved to be a function of its token ids,
    for one that transformers serves wrongly from a filled cache, and for one whose arguments the engine will reject
    itself.
    """
    try:
        bound = inspect.signature(generate).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedError("arguments", f"the engine will reject these arguments: {error}") from None
    given = dict(bound.arguments)
    extra = given.pop("kwargs", {})
    config = given.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise UnsupportedError("generation_config", f"a generation_config of type {type(config).__name__}")
    for name, value in given.items():
        if name not in _HARMLESS_PARAMETERS and value is not None and value is not False:
            raise UnsupportedError(name, f"generate({name}=...)")
    settings = Settings(model.generation_config, config, extra)
    settings.check()
    for name, value in extra.items():
        if not settings.has(name) and name not in _HARMLESS_ARGUMENTS and value is not None:
            raise UnsupportedError(_argument_code(name), f"generate({name}=...)")
    beams, repeats = settings.counts()
    if beams > 1 and hasattr(type(model), "_reorder_cache"):
        raise UnsupportedError("num_beams", f"{type(model).__name__} reorders its cache in a way of its own")
    ids = _input_ids(given.get("inputs"), extra.get("input_ids"))
    pads = _left_padding(ids, extra.get("attention_mask"), settings)
    implementation = settings.get("cache_implementation")
    static = implementation == "static"
    return Request(
        rows=tuple(row[pad:] for row, pad in zip(ids.tolist(), pads, strict=True)),
        pads=pads,
        width=ids.shape[1],
        repeats=repeats,
        beams=beams > 1,
        static=settings.static_columns(ids.shape[1]) if static else None,
        past=_given_past(extra.get("past_key_values"), settings),
        ending=settings.ending(),
        changes=_without_implementation(model, args, config, extra) if implementation else {},
    )


def _given_past(past: object, settings: Settings) -> Cache | None:
    if past is None:
        return None
    if not isinstance(past, Cache):
        raise UnsupportedError("past_key_values", f"past_key_values is a {type(past).__name__}")
    if settings.get("cache_implementation") is not None:
        raise UnsupportedError("arguments", "both past_key_values and cache_implementation: the engine will reject it")
    return past


def _without_implementation(
    model: Any, args: tuple[Any, ...], config: GenerationConfig | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What asks for the same but for the kind of cache, which is given instead."""
    if model.generation_config.cache_implementation is not None or (config is not None and len(args) > 1):
        raise UnsupportedError(
            "cache_implementation", "cache_implementation must be an argument, or in a generation_config given by name"
        )
    changes: dict[str, Any] = {}
    if config is not None:
        changes["generation_config"] = copy.deepcopy(config)
        changes["generation_config"].cache_implementation = None
    if "cache_implementation" in extra:
        changes["cache_implementation"] = None
    return changes


def _argument_code(name: str) -> str:
    """A reason code from a fixed set: a caller's own argument names must not become labels of a metric."""
    known = ("past_key_values", "inputs_embeds", "position_ids", "token_type_ids", "pixel_values", "encoder_outputs")
    return name if name in known else "unknown_argument"


def _input_ids(inputs: object, input_ids: object) -> torch.Tensor:
    """Token ids `[row, column]`."""
    ids = inputs if input_ids is None else input_ids
    if inputs is not None and input_ids is not None:
        raise UnsupportedError("arguments", "both inputs and input_ids were given: the engine will reject it")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise UnsupportedError("inputs", "the prompt is not a tensor [row, column] of token ids")
    if ids.device.type not in DEVICES:
        raise UnsupportedError("device", f"the prompt lies on {ids.device.type}, neither on the CPU nor on a GPU")
    if ids.numel() == 0:
        raise UnsupportedError("inputs", "the prompt is empty")
    return ids.cpu()


def _left_padding(ids: torch.Tensor, mask: object, settings: Settings) -> tuple[int, ...]:
    """The number of masked columns on the left of each row; anything but left padding is refused."""
    rows, width = ids.shape
    if mask is None:
        _check_inferred_mask(ids, settings)
        return (0,) * rows
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or mask.is_floating_point() or mask.is_complex():
        raise UnsupportedError("attention_mask", "an attention mask that isn't one integer or bool for each token")
    if mask.device.type not in DEVICES:
        raise UnsupportedError("device", f"the attention mask lies on {mask.device.type}, not on the CPU or a GPU")
    numbers = mask.cpu().to(torch.int64)
    pads = width - numbers.sum(-1)
    left_padded = (torch.arange(width) >= pads[:, None]).to(torch.int64)
    if not torch.equal(numbers, left_padded) or int(pads.max()) >= width:
        raise UnsupportedError("attention_mask", "an attention mask other than left padding (padding_side='left')")
    return tuple(pads.tolist())


def _check_inferred_mask(ids: torch.Tensor, settings: Settings) -> None:
    """Without a mask transformers masks padding tokens, wherever they stand, unless the padding token also ends
    sentences."""
    pad, eos = settings.get("pad_token_id"), settings.get("eos_token_id")
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if isinstance(pad, int) and pad not in ends and bool((ids == pad).any()):
        raise UnsupportedError("attention_mask", "the prompt holds the padding token and no attention_mask was given")
    if pad is not None and not isinstance(pad, int):
        raise UnsupportedError("pad_token_id", "a pad_token_id that isn't an integer, and no attention_mask")
