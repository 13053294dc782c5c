"""What an engine runs, read from disk: the same whichever engine asks, or a clear refusal."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.architectures import ARCHITECTURES
from kvlingua.common.identity.model import IGNORED_FIELDS, ModelDescription, describe_model
from tests.common.samples import LLAMA, model_folder

MISSING: object = "<missing>"  # told apart by identity; as text it is in the names of tests, the same in every process


def describe(path: Path, **options: Any) -> ModelDescription:
    return describe_model(path, **({"compute_dtype": "float32", "kv_dtype": "float32"} | options))


def changed(**changes: Any) -> dict[str, Any]:
    """Llama's configuration with changes; MISSING takes a field out."""
    return {key: value for key, value in (LLAMA | changes).items() if value is not MISSING}


def digest(path: Path, config: dict[str, Any] | None = None, **options: Any) -> str:
    return describe(model_folder(path, config), **options).namespace("ab" * 32, chunk_tokens=64).digest


# Of the two families with latent attention: what real configurations say, and transformers' classes don't on their own.
ROUTING: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"topk_method": "greedy", "scoring_func": "softmax"},
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "kv_lora_rank": 64}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_families_as_transformers_saves_them(model_type: str, tmp_path: Path) -> None:
    """The geometry is that of the cache which transformers itself fills, from the configuration as it saves it."""
    import torch

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128}
    if model_type == "gptj":
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 128, "rotary_dim": 16}
    if model_type == "gpt_oss":
        sizes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    if model_type in ROUTING:
        sizes |= EXPERTS | ROUTING[model_type] | {"num_key_value_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CONFIG_MAPPING[model_type](**sizes, **tokens, intermediate_size=64, vocab_size=32)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    geometry = describe(tmp_path, windows=ARCHITECTURES).geometry
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]), past_key_values=cache)
    assert len(cache.layers) == geometry.layers
    for layer in cache.layers:
        assert tuple(layer.keys.shape) == (1, geometry.kv_heads, 3, geometry.planes[0].width)
        assert tuple(layer.values.shape) == (1, geometry.kv_heads, 3, geometry.planes[1].width)


@pytest.mark.parametrize("model_type", [name for name, row in ARCHITECTURES.items() if row.theta is None])
def test_the_rotated_width_is_that_of_transformers(model_type: str, tmp_path: Path) -> None:
    config = transformers.CONFIG_MAPPING[model_type](
        architectures=list(ARCHITECTURES[model_type].classes[:1]),
        **ROUTING.get(model_type, {}),
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    state = describe(tmp_path, windows=ARCHITECTURES).rope
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = ("full_attention", "sliding_attention") if state["type"] == "by_layer" else ()
    for part, given in [(state[kind], config.rope_parameters[kind]) for kind in kinds] or [
        (state, config.rope_parameters)
    ]:
        assert part["rotary_dim"] == state["rotary_dim"]
        assert part["rotary_dim"] == int(head_dim * given.get("partial_rotary_factor", 1.0))
        assert part["theta"] == given["rope_theta"]


def test_what_is_kept_of_latent_attention(tmp_path: Path) -> None:
    """The rotated key's dims are in the order of transformers' cache: pairs of a V2, halves of a V3."""
    for name, order in (("deepseek_v2", "interleaved"), ("deepseek_v3", "half")):
        own = {"model_type": name, "architectures": list(ARCHITECTURES[name].classes), "rms_norm_eps": 1e-6}
        config = changed(**own, **EXPERTS, **ROUTING[name], qk_rope_head_dim=16)
        found = describe(model_folder(tmp_path / name, config))
        latent, rope = found.geometry.planes
        assert (latent.name, latent.width, rope.name, rope.width) == ("latent", 64, "rope", 16)
        assert (rope.rope.order, rope.rope.width, found.geometry.kv_heads) == (order, 16, 1)
        assert found.namespace("ab" * 32, chunk_tokens=64).geometry == found.geometry


def test_fp8_has_its_scales_in_the_identity(tmp_path: Path) -> None:
    found = describe(model_folder(tmp_path), kv_dtype="float8_e4m3fn", scales="tensor")
    namespace = found.namespace("ab" * 32, chunk_tokens=64)
    assert (namespace.kv_dtype, namespace.scales_policy) == ("float8_e4m3fn", "tensor")
    assert namespace.planes == {"k": 32, "v": 32}
    assert namespace.geometry == found.geometry
    with pytest.raises(UnsupportedError, match="float8_e4m3fn"):
        describe(model_folder(tmp_path), kv_dtype="float8_e4m3fn")
    with pytest.raises(UnsupportedError, match="use one of float8"):
        describe(model_folder(tmp_path), scales="tensor")


def test_windows_are_part_of_the_identity(tmp_path: Path) -> None:
    own = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 32}
    kinds = ["sliding_attention", "full_attention"]
    digests = {
        digest(tmp_path / str(window), changed(**own, sliding_window=window, layer_types=kinds), windows=ARCHITECTURES)
        for window in (64, 128)
    }
    assert len(digests) == 2
    for kinds in (["chunked_attention", "full_attention"], "sliding_attention"):
        with pytest.raises(UnsupportedError, match="layer_types"):
            digest(tmp_path / "other", changed(**own, sliding_window=64, layer_types=kinds), windows=ARCHITECTURES)


def test_both_spellings_of_rope_by_layer_agree(tmp_path: Path) -> None:
    own = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 32, "sliding_window": 64}
    old = {"rope_parameters": MISSING, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    digests = {
        digest(tmp_path / str(number), changed(**own, **rope), windows=ARCHITECTURES)
        for number, rope in enumerate(({"rope_parameters": BY_LAYER}, old))
    }
    assert len(digests) == 1
    for missing in ("rope_theta", "rope_local_base_freq"):
        with pytest.raises(UnsupportedError, match="rope_theta is missing"):
            digest(tmp_path / missing, changed(**own, **(old | {missing: MISSING})), windows=ARCHITECTURES)


def test_description_of_a_llama(tmp_path: Path) -> None:
    found = describe(model_folder(tmp_path), kv_dtype="bfloat16", compute_dtype="bfloat16")
    assert (found.geometry.layers, found.geometry.kv_heads, found.geometry.dtype) == (2, 4, "bfloat16")
    assert [plane.width for plane in found.geometry.planes] == [32, 32]
    assert found.rope == {"type": "default", "theta": 10000.0, "rotary_dim": 32}
    assert found.rope_order == "half"
    assert dict(found.weight_files) == {"model.safetensors": tmp_path / "model.safetensors"}
    assert not found.config.keys() & IGNORED_FIELDS
    namespace = found.namespace("ab" * 32, chunk_tokens=64)
    assert (namespace.heads_per_shard, namespace.layers_per_shard) == (1, 2)


def test_fields_that_cannot_change_kv_do_not_matter(tmp_path: Path) -> None:
    ignored = dict.fromkeys(IGNORED_FIELDS, "something")
    assert digest(tmp_path / "a") == digest(tmp_path / "b", changed(**ignored))
    assert digest(tmp_path / "c", overrides=ignored) == digest(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"max_position_embeddings": 4096},
        {"hidden_act": "gelu"},
        {"head_dim": 64},
        {"something_new": 1},
    ],
    ids=str,
)
def test_a_changed_configuration_is_another_namespace(change: dict[str, Any], tmp_path: Path) -> None:
    unchanged, options = digest(tmp_path / "a"), {"compute_dtype": "bfloat16", "kv_dtype": "bfloat16"}
    assert digest(tmp_path / "b") == unchanged  # another folder of the same is the same
    assert digest(tmp_path / "c", changed(**change)) != unchanged
    assert digest(tmp_path / "d", overrides=change) != unchanged
    assert digest(tmp_path / "e", **options) != unchanged


def test_both_spellings_of_rope_agree(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
    new = changed(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    old = changed(rope_parameters=MISSING, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = changed(rope_parameters=MISSING, rope_theta=500000, rope_scaling={"type": "llama3", **scaling})
    both = new | {"rope_theta": 5e5, "rope_scaling": None}
    digests = {digest(tmp_path / str(number), config) for number, config in enumerate((new, old, older, both))}
    assert len(digests) == 1


def test_yarn_with_and_without_its_defaults_agree(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}
    spelled = yarn | {"beta_fast": 32, "beta_slow": 1.0, "attention_factor": None}
    one, two = (digest(tmp_path / name, changed(rope_parameters=rope)) for name, rope in (("a", yarn), ("b", spelled)))
    assert one == two


def test_an_override_that_repeats_the_file_is_none(tmp_path: Path) -> None:
    same = {"rms_norm_eps": 0.000001, "num_hidden_layers": 2, "rope_parameters": LLAMA["rope_parameters"]}
    assert digest(tmp_path / "a", overrides=same) == digest(tmp_path / "b")
    assert describe(model_folder(tmp_path / "c"), overrides={"num_hidden_layers": 1}).geometry.layers == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rope_theta": 5e5}, "override rope_parameters as a whole"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "override rope_parameters as a whole"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "must repeat all of its keys: rope_type, rope_theta"),
        ({"rope_parameters": None}, "must repeat all of its keys"),
        ({"a": float("nan")}, "can't be written as JSON"),
        ({"a": object}, "can't be written as JSON"),
        ({"sliding_window": 512}, "sliding window of 512"),
    ],
    ids=str,
)
def test_overrides_that_engines_may_take_differently_are_refused(
    overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        describe(model_folder(tmp_path), overrides=overrides)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "deepseek_v3"}, "model_type"),
        ({"model_type": MISSING}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "model_type"),
        ({"architectures": MISSING}, "model_type"),
        ({"quantization_config": {"bits": 4}}, "model_feature"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "model_feature"),
        ({"kv_lora_rank": 512}, "model_feature"),
        ({"index_topk": 2048}, "model_feature"),
        ({"is_causal": False}, "model_feature"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "hybrid"),
        ({"layer_types": "full_attention"}, "hybrid"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "type": "linear", "rope_theta": 1e4}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2]}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "truncate": True}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": True}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}, "rope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope"),
        ({"rope_parameters": "default"}, "rope"),
        ({"rope_theta": 5e5}, "rope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope"),
        ({"rope_parameters": MISSING}, "rope"),
        ({"partial_rotary_factor": 0.5}, "rope"),
        ({"rotary_dim": 16}, "rope"),
        ({"rotary_pct": 0.5}, "rope"),
        ({"num_hidden_layers": MISSING}, "config"),
        ({"num_hidden_layers": 2.0}, "config"),
        ({"num_hidden_layers": True}, "config"),
        ({"num_attention_heads": 0}, "config"),
        ({"hidden_size": 1 << 30}, "config"),
        ({"hidden_size": 250}, "head_dim"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"large": (1 << 53) + 1}, "model_files"),
    ],
    ids=str,
)
def test_what_is_not_proved_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    describe(model_folder(tmp_path))
    with pytest.raises(UnsupportedError) as refused:
        describe(model_folder(tmp_path, changed(**change)))
    assert refused.value.reason == reason
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model_type", "change", "reason"),
    [
        ("mistral", {"sliding_window": MISSING}, "sliding_window"),
        ("mistral", {"sliding_window": 4096}, "sliding_window"),
        ("gemma3_text", {"sliding_window": 64}, "sliding_window"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope"),
        ("gemma3_text", {"rope_theta": 1e6}, "rope"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "model_feature"),
        ("gpt_oss", {"sliding_window": 64}, "sliding_window"),
        ("gpt_oss", {"rope_parameters": YARN}, "rope"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "rope"),
        ("llama", {"rope_local_base_freq": 1e4}, "rope"),
        ("mistral", {"num_key_value_heads": MISSING}, "config"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4096}, "model_feature"),
        ("qwen2", {"head_dim": 64}, "head_dim"),
        ("qwen3", {"head_dim": MISSING}, "config"),
        ("phi", {"qk_layernorm": True}, "model_feature"),
        ("phi", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope"),
        ("glm", {"partial_rotary_factor": 0.03}, "rope"),
        ("gptj", {"rotary_dim": None}, "rope"),
        ("gemma2", {"sliding_window": 64}, "sliding_window"),  # who asks doesn't say that it understands windows
        ("gemma2", {"use_bidirectional_attention": True}, "model_feature"),
        ("deepseek_v2", {"rms_norm_eps": 1e-5}, "model_feature"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "model_feature"),
        ("deepseek_v2", {"n_group": 8}, "model_feature"),
        ("deepseek_v2", {"kv_lora_rank": MISSING}, "config"),
        ("deepseek_v3", {"scoring_func": MISSING}, "model_feature"),
        ("deepseek_v3", {"rope_interleave": False}, "model_feature"),
        ("deepseek_v3", {"rope_interleave": None}, "model_feature"),
        ("deepseek_v3", {"qk_rope_head_dim": 63}, "rope"),
        ("gptj", {"rope_theta": 1e4}, "rope"),
    ],
    ids=str,
)
def test_what_is_not_proved_of_a_family_is_refused(
    model_type: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    own = {
        "mistral": {"sliding_window": None},
        "qwen3": {"head_dim": 32},
        "glm": {"head_dim": 32},
        "gemma2": {"head_dim": 32, "sliding_window": None},
        "gemma3_text": {"head_dim": 32, "sliding_window": None, "rope_parameters": BY_LAYER},
        "gpt_oss": {"head_dim": 32, "sliding_window": None, "rope_parameters": YARN | {"truncate": False}},
        **{name: {"rms_norm_eps": 1e-6, "qk_rope_head_dim": 64} | EXPERTS | ROUTING[name] for name in ROUTING},
        "gptj": {"n_embd": 256, "n_head": 8, "n_layer": 2, "rotary_dim": 16, "rope_parameters": MISSING},
    }.get(model_type, {})
    base = {"model_type": model_type, "architectures": list(ARCHITECTURES[model_type].classes[:1])} | own
    describe(model_folder(tmp_path, changed(**base)))
    with pytest.raises(UnsupportedError) as refused:
        describe(model_folder(tmp_path, changed(**(base | change))))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"load_format": "dummy"}, "dummy_weights"),
        ({"load_format": "gguf"}, "load_format"),
        ({"quantization": "fp8"}, "quantization"),
        ({"compute_dtype": "float8_e4m3fn"}, "dtype"),
        ({"kv_dtype": "fp8"}, "dtype"),
    ],
    ids=str,
)
def test_how_it_is_run_is_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        describe(model_folder(tmp_path), **options)
    assert refused.value.reason == reason
