"""The names of stored objects: an object is named by what it holds, not by who wrote it.

    <namespace, 64 hex>/<chain, 64 hex>-h<heads from>-<to>-l<layers from>-<to>.safetensors
    <namespace, 64 hex>/namespace.json

Ranges are half-open: `h0-4` are the kv heads 0, 1, 2 and 3.
"""

import re
from dataclasses import dataclass

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity.chain import DIGEST_BYTES
from kvlingua.layouts.geometry import Extent

NAMESPACE_FILE = "namespace.json"
OBJECT_SUFFIX = ".safetensors"
_HEX = re.compile(r"[0-9a-f]{64}")
_NUMBER = r"(0|[1-9][0-9]{0,5})"
_OBJECT = re.compile(
    rf"([0-9a-f]{{64}})/([0-9a-f]{{64}})-h{_NUMBER}-{_NUMBER}-l{_NUMBER}-{_NUMBER}{re.escape(OBJECT_SUFFIX)}"
)


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """What a key says: the namespace's digest (hex), the chain digest (32 bytes), and what the object holds."""

    namespace: str
    chain: bytes
    extent: Extent

    def __str__(self) -> str:
        return object_key(self.namespace, self.chain, self.extent)


def object_key(namespace_digest: str, chain_digest: bytes, extent: Extent) -> str:
    """The key of one object. Raises IdentityError for digests that aren't digests."""
    if not _HEX.fullmatch(namespace_digest) or len(chain_digest) != DIGEST_BYTES:
        raise IdentityError("a namespace digest is 64 hexadecimal digits, a chain digest 32 bytes")
    heads, layers = f"h{extent.head_start}-{extent.head_stop}", f"l{extent.layer_start}-{extent.layer_stop}"
    return f"{namespace_digest}/{chain_digest.hex()}-{heads}-{layers}{OBJECT_SUFFIX}"


def namespace_key(namespace_digest: str) -> str:
    """Where a namespace's canonical JSON lies, beside its objects."""
    if not _HEX.fullmatch(namespace_digest):
        raise IdentityError("a namespace digest is 64 hexadecimal digits")
    return f"{namespace_digest}/{NAMESPACE_FILE}"


def parse_key(key: str) -> ObjectKey | None:
    """What an object's key says; None for anything that isn't one (a namespace's JSON, a foreign file)."""
    match = _OBJECT.fullmatch(key)
    if match is None:
        return None
    numbers = [int(number) for number in match.groups()[2:]]
    head_start, head_stop, layer_start, layer_stop = numbers
    if head_start >= head_stop or layer_start >= layer_stop:
        return None
    return ObjectKey(match[1], bytes.fromhex(match[2]), Extent(head_start, head_stop, layer_start, layer_stop))
