"""How much of a prompt is taken from the store."""

from kvlingua.common.errors import IdentityError


def reusable_tokens(stored: int, prompt: int, page: int) -> int:
    """The number of leading prompt tokens whose KV an engine takes over.

    `stored`: tokens of the longest stored run of chunks; `prompt`: tokens of the prompt; `page`: tokens of the engine's
    block or page (Hugging Face: 1). At least one prompt token is left to compute, because its logits are needed, and
    only whole pages are taken: min(stored, prompt - 1), rounded down to `page`.
    """
    if stored < 0 or prompt < 0 or page < 1:
        raise IdentityError(f"tokens can't be negative and a page holds at least one: {stored=}, {prompt=}, {page=}")
    taken = max(0, min(stored, prompt - 1))
    return taken - taken % page
