"""The chain of digests that names the chunks of a token sequence.

    digest of a chunk = sha256(digest of the chunk before it || its tokens as u32 little-endian)

The first chunk has nothing before it, or the request's seed. A digest so names a whole prefix, position included. The
chain equals SGLang's page hashes for pages of `chunk_tokens` tokens.
"""

import hashlib
import sys
from array import array
from collections.abc import Sequence

from kvlingua.common.errors import IdentityError

DIGEST_BYTES = 32
TOKEN_LIMIT = 1 << 32
_SEED_DOMAIN = b"sglang-cache-namespace-v1"


def chain_digests(tokens: Sequence[int], chunk_tokens: int, seed: bytes = b"") -> list[bytes]:
    """One digest of 32 bytes for each whole chunk of `tokens`; a last, partly filled chunk has none.

    `seed`: nothing, or the 32 bytes of `request_seed`. Raises IdentityError for a token outside u32.
    """
    if chunk_tokens < 1:
        raise IdentityError(f"a chunk holds at least one token, not {chunk_tokens}")
    if len(seed) not in (0, DIGEST_BYTES):
        raise IdentityError(f"a seed is empty or {DIGEST_BYTES} bytes long, not {len(seed)}")
    words = memoryview(_little_endian_words(tokens))
    step = 4 * chunk_tokens
    digests = []
    previous = seed
    for start in range(0, len(words) - step + 1, step):
        chunk = hashlib.sha256(previous)
        chunk.update(words[start : start + step])
        previous = chunk.digest()
        digests.append(previous)
    return digests


def request_seed(extra_key: str | None, cache_salt: str | None) -> bytes:
    """What a request's `extra_key` and `cache_salt` put in front of its chain; empty if it has neither.

    Equal to SGLang's storage_namespace_seed: each part is marked as absent (0) or present (1, its length in UTF-8 as
    u64 little-endian, its bytes), so that an absent, an empty and a joined part all differ.
    """
    if extra_key is None and cache_salt is None:
        return b""
    digest = hashlib.sha256(_SEED_DOMAIN)
    for part in (extra_key, cache_salt):
        if part is None:
            digest.update(b"\0")
            continue
        try:
            text = part.encode()
        except UnicodeEncodeError as error:
            raise IdentityError(f"extra_key and cache_salt must be valid Unicode: {error}") from None
        digest.update(b"\1" + len(text).to_bytes(8, "little") + text)
    return digest.digest()


def _little_endian_words(tokens: Sequence[int]) -> bytes:
    if isinstance(tokens, (bytes, bytearray)):  # an array would take them for machine words
        raise IdentityError("token ids are a sequence of integers, not bytes")
    try:
        words = array("I", tokens)
    except (OverflowError, TypeError, ValueError) as error:
        raise IdentityError(f"token ids are integers from 0 to {TOKEN_LIMIT - 1}: {error}") from None
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
