"""Which requests take part: those whose KV is a function of their token ids (and of the cache salt, which is in
their keys, and of a LoRA adapter, whose digest is in their namespace)."""

from typing import Any

from kvlingua.common.identity.chain import request_seed


def passes_through(request: Any) -> str | None:
    """Why this vLLM request is neither looked up nor stored (a code for metrics), or None if it takes part."""
    if request.prompt_embeds is not None or request.prompt_is_token_ids is not None:
        return "prompt_embeds"  # its token ids, where it has any, are place holders
    if request.mm_features:
        return "multimodal"  # images and sounds stand behind place holders
    if request.pooling_params is not None:
        return "pooling"
    if not request.prompt_token_ids:
        return "no_token_ids"
    if request.resumable:
        return "streaming_input"  # the prompt grows while the request lives
    return None


def only_stores(request: Any) -> bool:
    """Whether vLLM must compute all of this prompt itself, e.g. because its log probabilities are asked for."""
    sampling = request.sampling_params
    return bool(request.skip_reading_prefix_cache or (sampling is not None and sampling.prompt_logprobs is not None))


def seed_of(request: Any) -> bytes:
    """What the request's cache_salt puts in front of its chain of keys."""
    return request_seed(None, request.cache_salt)
