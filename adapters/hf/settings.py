"""The generation settings of a call, and which of them are understood."""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CompileConfig, GenerationConfig

from kvlingua.common.errors import UnsupportedError

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
    "num_beam_groups": (1,),
    "guidance_scale": (1,),
    "diversity_penalty": (0,),
    "use_cache": (True,),
    "cache_implementation": ("dynamic",),  # what transformers does without it, too
}
_COUNTS = ("num_beams", "num_return_sequences")
_DEFAULT_NEW_TOKENS = 20  # transformers' own

# transformers feeds a chunked prefill wrongly behind a filled cache before this version.
_CHUNKED_PREFILL_SINCE = (5, 23)


class Settings:
    """Those in force: arguments beat the given GenerationConfig, that one the model's."""

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
            if name in _COUNTS and type(value) is int and value > 0:
                continue
            if name == "prefill_chunk_size" and _transformers_version() >= _CHUNKED_PREFILL_SINCE:
                continue
            # A prompt that is read in chunks is read by a compiled forward, too.
            if name == "cache_implementation" and value == "static" and self.get("prefill_chunk_size") is None:
                continue
            if name == "compile_config" and type(value) is CompileConfig and self.get("prefill_chunk_size") is None:
                continue
            raise UnsupportedError(name, f"generate({name}={value!r})")

    def counts(self) -> tuple[int, int]:
        """Beams, and rows of the cache that a row of the batch takes."""
        beams, sequences = (self.get(name) or 1 for name in _COUNTS)
        return beams, max(beams, sequences)

    def static_columns(self, width: int) -> int:
        """As many columns as a static cache needs for a prompt of `width`, or more."""
        new, whole = self.get("max_new_tokens"), self.get("max_length")
        lengths = [width + (_DEFAULT_NEW_TOKENS if new is None else new), whole or 0, self.get("max_cache_len") or 0]
        return max(lengths)

    def ending(self) -> frozenset[int]:
        """The padding token, and those that end a text."""
        values = (self.get("pad_token_id"), self.get("eos_token_id"))
        lists = (value if isinstance(value, (list, tuple)) else [value] for value in values)
        return frozenset(each for value in lists for each in value if isinstance(each, int))


def _transformers_version() -> tuple[int, int]:
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)
