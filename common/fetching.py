"""Objects from a store into memory of our own, verified there; what is damaged is removed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvlingua.common import log
from kvlingua.common.container import Container
from kvlingua.common.errors import ContainerError, LoadError, StoreError
from kvlingua.common.guard import REPEAT_S, reason_of
from kvlingua.common.identity.keys import object_key
from kvlingua.common.running import Running
from kvlingua.common.stores.store import Read
from kvlingua.layouts.geometry import Extent


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object, which of it must be intact, and where it is to be put: `container.object_bytes` of memory."""

    container: Container
    needed: Extent
    digest: bytes
    memory: memoryview

    @property
    def key(self) -> str:
        return object_key(self.container.namespace.digest, self.digest, self.container.extent)


@dataclass(slots=True)
class Trouble:
    """Objects that can't be used, by their keys."""

    gone: list[str] = field(default_factory=list)
    damaged: dict[str, ContainerError] = field(default_factory=dict)


def fetch(running: Running, objects: Sequence[Wanted], trouble: Trouble) -> None:
    """Fill the memory of all objects in one question to the store; what is wrong is added to `trouble`. StoreError."""
    sizes = running.store.get_many([Read(one.key, 0, one.memory) for one in objects])
    for one, size in zip(objects, sizes, strict=True):
        if size is None:
            trouble.gone.append(one.key)
            continue
        try:
            if size != one.container.object_bytes:
                raise ContainerError("size", f"an object of {one.container.object_bytes} bytes expected, not {size}")
            one.container.verify(one.memory, one.digest, one.needed)
        except ContainerError as error:
            trouble.damaged[one.key] = error


def refuse(running: Running, trouble: Trouble, total: int) -> None:
    """Remove what is damaged, and raise LoadError, if there is trouble with any of `total` objects."""
    if trouble.damaged:
        _remove(running, trouble.damaged)
        key, error = next(iter(trouble.damaged.items()))
        raise LoadError(f"{len(trouble.damaged)} of {total} objects are damaged, such as {key}: {error}") from error
    if trouble.gone:
        count = len(trouble.gone)
        raise LoadError(f"{count} of {total} objects are gone since the lookup, such as {trouble.gone[0]}")


def _remove(running: Running, damaged: dict[str, ContainerError]) -> None:
    by_reason: dict[str, list[str]] = {}
    for key, error in damaged.items():
        running.counts.corrupt(error.reason)
        by_reason.setdefault(error.reason, []).append(f"{key}: {error}")
    for reason, those in by_reason.items():
        message = f"{len(those)} damaged objects are removed ({reason}), such as {those[0]}"
        log.once(f"damaged {reason}", logging.WARNING, message, every_s=REPEAT_S)
    try:
        running.store.delete_many(list(damaged))
    except StoreError as error:
        log.once(f"remove {reason_of(error)}", logging.WARNING, f"a damaged object couldn't be removed: {error}")
