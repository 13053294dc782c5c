"""Which calls of `generate` may use the cache. What is understood is listed here; everything else passes through."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from kvlingua.adapters.hf.live_state import DEVICES
from kvlingua.common.errors import UnsupportedError

# Parameters of `generate` that can't change the KV of the prompt, whatever they hold.
_HARMLESS_PARAMETERS = frozenset(
    {"inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"}
)

# Other keyword arguments: the prompt itself, and the tokenizer that stop strings need.
_HARMLESS_ARGUMENTS = frozenset({"input_ids", "attention_mask", "tokenizer"})

# Settings of a GenerationConfig that only choose among logits, end the generation, or say what is returned. The last
# group matters to assisted decoding alone, which is refused by what switches it on.
_HARMLESS_SETTINGS = frozenset(
    {
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "max_time", "stop_strings"),
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "renormalize_logits", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
        *("begin_suppress_tokens", "sequence_bias", "watermarking_config"),
        *("output_scores", "output_logits", "return_dict_in_generate", "transformers_version"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "disable_compile", "max_cache_len"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    }
)

# Settings that switch something on which is refused, and the values with which they don't.
_NEUTRAL_SETTINGS: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1,),
    "diversity_penalty": (0,),
    "use_cache": (True,),
}

# transformers feeds a chunked prefill wrongly behind a filled cache before this version.
_CHUNKED_PREFILL_SINCE = (5, 23)


@dataclass(frozen=True)
class Prompt:
    """What `generate` was asked to continue.

    rows: one list of token ids for each row of the batch, without padding. pads: tokens of padding on the left of
    each row. width: columns of the batch; `pads[i] + len(rows[i]) == width`.
    """

    rows: tuple[list[int], ...]
    pads: tuple[int, ...]
    width: int


def read_prompt(model: Any, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Prompt:
    """The prompt of the call `generate(*args, **kwargs)` of `model`.

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
    settings = _Settings(model.generation_config, config, extra)
    settings.check()
    for name, value in extra.items():
        if not settings.has(name) and name not in _HARMLESS_ARGUMENTS and value is not None:
            raise UnsupportedError(_argument_code(name), f"generate({name}=...)")
    ids = _input_ids(given.get("inputs"), extra.get("input_ids"))
    pads = _left_padding(ids, extra.get("attention_mask"), settings)
    rows = tuple(row[pad:] for row, pad in zip(ids.tolist(), pads, strict=True))
    return Prompt(rows, pads, ids.shape[1])


class _Settings:
    """The generation settings in force: arguments beat the given GenerationConfig, that one the model's."""

    def __init__(self, own: GenerationConfig, given: GenerationConfig | None, extra: Mapping[str, Any]) -> None:
        self._layers = [vars(layer) for layer in (given, own) if layer is not None]
        self._extra = extra
        self._known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}

    def has(self, name: str) -> bool:
        return name in self._known

    def get(self, name: str) -> Any:
        if name in self._extra:
            return self._extra[name]
        return next((layer[name] for layer in self._layers if layer.get(name) is not None), None)

    def check(self) -> None:
        for name in sorted(self._known - _HARMLESS_SETTINGS):
            value = self.get(name)
            if name == "use_cache":  # None is on by default, but not where it is an argument
                off = value is None and name not in self._extra
            else:
                off = value is None or value is False
            if off or value in _NEUTRAL_SETTINGS.get(name, ()):
                continue
            if name == "prefill_chunk_size" and _transformers_version() >= _CHUNKED_PREFILL_SINCE:
                continue
            raise UnsupportedError(name, f"generate({name}={value!r})")


def _argument_code(name: str) -> str:
    """A reason code from a fixed set: a caller's own argument names must not become labels of a metric."""
    known = ("past_key_values", "inputs_embeds", "position_ids", "token_type_ids", "pixel_values", "encoder_outputs")
    return name if name in known else "unknown_argument"


def _transformers_version() -> tuple[int, int]:
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


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


def _left_padding(ids: torch.Tensor, mask: object, settings: _Settings) -> tuple[int, ...]:
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


def _check_inferred_mask(ids: torch.Tensor, settings: _Settings) -> None:
    """Without a mask transformers masks padding tokens, wherever they stand, unless the padding token also ends
    sentences."""
    pad, eos = settings.get("pad_token_id"), settings.get("eos_token_id")
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if isinstance(pad, int) and pad not in ends and bool((ids == pad).any()):
        raise UnsupportedError("attention_mask", "the prompt holds the padding token and no attention_mask was given")
    if pad is not None and not isinstance(pad, int):
        raise UnsupportedError("pad_token_id", "a pad_token_id that isn't an integer, and no attention_mask")
