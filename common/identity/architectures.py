"""The families of models whose KV is known to be the same in every engine: decoders with full attention.

To add one: compare its K and V in Hugging Face transformers, vLLM and SGLang on the same weights, numerically, then
add a row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.geometry import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the table knows of one `model_type`.

    classes: what `architectures` in config.json may name. rope_order: which dims are rotated together, as transformers'
    cache holds them. rotary_factor: the share of a head that is rotated if config.json doesn't say; None: always all.
    theta: set if config.json has no say in it. scaled_rope: whether linear, llama3 and yarn are computed alike.
    kv_heads, head_dim: whether config.json must state them (`required`: transformers' default is a number of its
    own), may (`optional`: as many as heads; hidden size / heads), or may only repeat what follows (`derived`).
    requires: values, or tuples of them, of which fields must have one where they are present. states: fields that must
    be present with that value. latent: whether attention is multi-head latent (MLA): a latent and a rotated key per
    token take the place of kv heads. windows: whether layers may attend to a sliding window, where the engine says that
    it takes part with such models.
    """

    classes: tuple[str, ...]
    rope_order: Order = "half"
    rotary_factor: float | None = None
    theta: float | None = None
    scaled_rope: bool = False
    kv_heads: Literal["required", "optional", "derived"] = "optional"
    head_dim: Literal["required", "optional", "derived"] = "derived"
    requires: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    latent: bool = False
    windows: bool = False
    rope_by_layer: bool = False
    rope_flags: tuple[str, ...] = ()


_WINDOW_OFF = {"use_sliding_window": False}
_GPTJ_NAMES = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(classes=("LlamaForCausalLM",), scaled_rope=True, head_dim="optional"),
    "mistral": Architecture(
        classes=("MistralForCausalLM",),
        scaled_rope=True,
        kv_heads="required",
        head_dim="optional",
        windows=True,
    ),
    "qwen2": Architecture(classes=("Qwen2ForCausalLM",), scaled_rope=True, kv_heads="required", requires=_WINDOW_OFF),
    "qwen3": Architecture(
        classes=("Qwen3ForCausalLM",), scaled_rope=True, kv_heads="required", head_dim="required", requires=_WINDOW_OFF
    ),
    "olmo2": Architecture(classes=("Olmo2ForCausalLM",)),
    "gemma2": Architecture(
        classes=("Gemma2ForCausalLM",),
        kv_heads="required",
        head_dim="required",
        requires={"attention_bias": False, "use_bidirectional_attention": (None, False)},
        windows=True,
    ),
    "gemma3_text": Architecture(
        classes=("Gemma3ForCausalLM",),
        scaled_rope=True,
        kv_heads="required",
        head_dim="required",
        requires={
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "use_bidirectional_attention": (None, False),
        },
        windows=True,
        rope_by_layer=True,
    ),
    "gpt_oss": Architecture(
        classes=("GptOssForCausalLM",),
        scaled_rope=True,
        kv_heads="required",
        head_dim="required",
        windows=True,
        rope_flags=("truncate",),
    ),
    "granite": Architecture(classes=("GraniteForCausalLM",), scaled_rope=True),
    "phi": Architecture(classes=("PhiForCausalLM",), rotary_factor=0.5, requires={"qk_layernorm": False}),
    "stablelm": Architecture(
        classes=("StableLmForCausalLM",),
        rotary_factor=0.25,
        kv_heads="required",
        requires={"qk_layernorm": False, "use_parallel_residual": False},
    ),
    "smollm3": Architecture(  # every fourth layer is not rotated; which ones is part of the configuration
        classes=("SmolLM3ForCausalLM",), kv_heads="required", requires=_WINDOW_OFF
    ),
    "gptj": Architecture(
        classes=("GPTJForCausalLM",),
        rope_order="interleaved",
        theta=10000.0,
        kv_heads="derived",
        names=_GPTJ_NAMES,
    ),
    "cohere": Architecture(classes=("CohereForCausalLM",), rope_order="interleaved"),
    "glm": Architecture(
        classes=("GlmForCausalLM",),
        rope_order="interleaved",
        rotary_factor=0.5,
        kv_heads="required",
        head_dim="required",
    ),
    "glm4": Architecture(
        classes=("Glm4ForCausalLM",),
        rope_order="interleaved",
        rotary_factor=0.5,
        kv_heads="required",
        head_dim="required",
    ),
    "ernie4_5": Architecture(
        classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        rope_order="interleaved",
        kv_heads="required",
        head_dim="required",
    ),
    # Of these two transformers normalises latents with an epsilon of its own, and engines with that of config.json.
    # How experts are chosen is computed alike only so; transformers holds the rotated key of a V3 as halves.
    "deepseek_v2": Architecture(
        classes=("DeepseekV2ForCausalLM",),
        rope_order="interleaved",
        requires={
            "scoring_func": "softmax",
            "n_group": (None, 1),
            "topk_group": (None, 1),
            "norm_topk_prob": False,
            "attention_bias": False,
            "mlp_bias": False,
        },
        states={"rms_norm_eps": 1e-06, "topk_method": "greedy"},
        latent=True,
    ),
    "deepseek_v3": Architecture(
        classes=("DeepseekV3ForCausalLM",),
        requires={"rope_interleave": True, "attention_bias": False},
        states={"rms_norm_eps": 1e-06, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        latent=True,
    ),
}

# Anything but the named value (or null, or absence) may change what is computed, in some engine or in all.
_MUST_NOT_BE_SET: Mapping[str, tuple[Any, str]] = {
    "quantization_config": (None, "quantised weights"),
    "compression_config": (None, "quantised weights"),
    "auto_map": (None, "code of the model's own"),
    "kv_lora_rank": (None, "multi-head latent attention (MLA)"),
    "index_topk": (None, "sparse attention"),
    "attention_chunk_size": (None, "chunked local attention"),
    "dual_chunk_attention_config": (None, "dual chunk attention"),
    "is_encoder_decoder": (False, "an encoder"),
    "add_cross_attention": (False, "cross-attention"),
    "is_causal": (True, "attention that is not causal"),
    "alibi": (False, "ALiBi"),
    "text_config": (None, "a model with several parts"),
    "vision_config": (None, "a multimodal model"),
    "audio_config": (None, "a multimodal model"),
}


def architecture_of(config: Mapping[str, Any], windows: Collection[str] = ()) -> Architecture:
    """The row for a config.json. Raises UnsupportedError unless its model is of a known family, and plainly so.

    windows: the families whose layers with a sliding window are understood by who asks.
    """
    name = config.get("model_type")
    row = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if row is None:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(
            "model_type",
            f"model_type {name!r} is not supported yet; known are {known} (common/identity/architectures.py)",
        )
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in row.classes:
        expected = " or ".join(row.classes)
        raise UnsupportedError("model_type", f"architectures {classes!r} of a {name}: only [{expected}] is supported")
    for key, (harmless, what) in _MUST_NOT_BE_SET.items():
        if not (row.latent and key == "kv_lora_rank") and config.get(key) not in (None, harmless):
            raise UnsupportedError("model_feature", f"{what} ({key} in config.json) is not supported yet")
    for key, value in row.requires.items():
        if key in config and not _is_one_of(config[key], value):
            raise UnsupportedError("model_feature", f"{name} with {key} = {config[key]!r} is not supported yet")
    for key, value in row.states.items():
        if not _is_one_of(config.get(key, ...), value):
            raise UnsupportedError("model_feature", f"{name} is supported only where config.json says {key}: {value}")
    _refuse_windows(config, row, row.windows and name in windows)
    return row


def _is_one_of(found: Any, expected: Any) -> bool:
    """Whether it is the expected value, or one of a tuple of them; 1 is not true, nor is 0 false."""
    values = expected if isinstance(expected, tuple) else (expected,)
    return any(type(found) is type(value) and found == value for value in values)


def _refuse_windows(config: Mapping[str, Any], row: Architecture, allowed: bool) -> None:
    known = {"full_attention", "sliding_attention"} if allowed else {"full_attention"}
    if not allowed and "use_sliding_window" not in row.requires and config.get("sliding_window") is not None:
        raise UnsupportedError("sliding_window", f"a sliding window of {config['sliding_window']} is not supported yet")
    if row.windows and "sliding_window" not in config:
        raise UnsupportedError(
            "sliding_window", "config.json must say sliding_window, readers differ in what they assume"
        )
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind not in known for kind in kinds)):
        raise UnsupportedError("hybrid", "layers that are not all full_attention (layer_types) are not supported yet")
