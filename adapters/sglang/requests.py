"""Which requests may share KV: those whose KV is a function of their token ids and nothing else."""

from typing import Any

from kvlingua.adapters.sglang.releases import ABSENT

# Attributes of SGLang's Req that say otherwise, when set, and the reason code. The rest of Req was read: it chooses
# among logits, says what is returned, is in the keys (the adapter of LoRA), or belongs to what is refused at start
# (speculation, separate servers).
MARKS = {
    "input_embeds": "input_embeds",  # the token ids are made up: [1] * n
    "positional_embed_overrides": "embedding_overrides",  # some tokens' embeddings are replaced
    "multimodal_inputs": "multimodal",
    "token_type_ids": "token_type_ids",
    "multi_item_delimiter_indices": "multi_item",  # masks of their own
    "decision_layout": "decision_layout",
    "token_indices_to_pool": "pooling",
    "session": "session",  # continued: SGLang keeps their KV, and may rewrite their token ids in place
    "session_id": "session",
    "dllm_config": "diffusion",
    "beam_group": "beam_search",  # rows beside the request's own
}


def pass_through(request: Any) -> str | None:
    """The reason code why `request` (SGLang's Req) is left alone, or None if it may be served from the store."""
    for name, reason in MARKS.items():
        if name not in ABSENT and getattr(request, name) is not None:
            return reason
    return None
