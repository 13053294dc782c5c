"""Why nothing hits: the stored namespace that is most like ours, and the fields that differ."""

from itertools import islice

from kvlingua.common.errors import IdentityError
from kvlingua.common.identity.keys import NAMESPACE_FILE, namespace_key
from kvlingua.common.identity.namespace import MAX_NAMESPACE_BYTES, Namespace
from kvlingua.common.stores.store import Read, Store

_ENTRIES = 200_000  # objects looked at, and namespaces read: bounds on what a strange folder can cost
_NAMESPACES = 256


def stored_namespaces(store: Store) -> list[Namespace]:
    """The namespaces whose JSON lies in the store and is what its name says; others are passed over."""
    entries = [entry for entry in islice(store.scan(), _ENTRIES) if entry.key.endswith(f"/{NAMESPACE_FILE}")]
    entries = [entry for entry in entries if entry.nbytes <= MAX_NAMESPACE_BYTES][:_NAMESPACES]
    buffers = [bytearray(entry.nbytes) for entry in entries]
    sizes = store.get_many(
        [Read(entry.key, 0, memoryview(buffer)) for entry, buffer in zip(entries, buffers, strict=True)]
    )
    found = []
    for entry, buffer, size in zip(entries, buffers, sizes, strict=True):
        if size == len(buffer):
            try:
                namespace = Namespace.from_json(memoryview(buffer))
            except IdentityError:
                continue
            if namespace_key(namespace.digest) == entry.key:
                found.append(namespace)
    return found


def nearest(store: Store, namespace: Namespace) -> tuple[Namespace, list[str]] | None:
    """The stored namespace other than `namespace` that differs in the fewest fields, and one line for each of them."""
    others = [(other, namespace.differences(other)) for other in stored_namespaces(store) if other != namespace]
    return min(others, key=lambda found: len(found[1]), default=None)
