"""Every exception that kvlingua raises on purpose.

    KVLinguaError                 the root: whoever catches it catches all of these
    ├── LayoutError               a description of memory that doesn't fit the memory, or two that don't fit each other
    ├── ConfigError               an unknown key, or a value that can't be right
    ├── UnsupportedError          what kvlingua can't do (yet), with a reason code: the engine runs on without cache
    ├── IdentityError             tokens or a namespace that have no key
    ├── ContainerError            a stored object that can't be trusted, with a reason code: a miss
    ├── StoreError                the store itself failed: a miss
    │   ├── StoreTimeout          it didn't answer in time
    │   └── StoreFull             there is no room, and none could be made
    └── LoadError                 a load that was promised to the engine and didn't happen: recompute
        └── LoadCancelled         because the engine gave it up

Errors raised before a hit is promised to an engine become a miss; those raised after it must reach the engine as
"recompute".
"""

from kvlingua.layouts.errors import KVLinguaError, LayoutError

__all__ = [
    "ConfigError",
    "ContainerError",
    "IdentityError",
    "KVLinguaError",
    "LayoutError",
    "LoadCancelled",
    "LoadError",
    "StoreError",
    "StoreFull",
    "StoreTimeout",
    "UnsupportedError",
]


class ConfigError(KVLinguaError):
    """The configuration can't be used; the message names the source (argument, variable, file) and the key."""


class UnsupportedError(KVLinguaError):
    """What can't be proved to be right is not done. `reason`: a short code for metrics; the message says what works."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IdentityError(KVLinguaError):
    """Tokens, a seed or a namespace from which no key can be made."""


class ContainerError(KVLinguaError):
    """A stored object that can't be trusted. `reason` is a short code for metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreError(KVLinguaError):
    """The store failed, not one object in it. `stored`: how many objects of a `put_many` are there nevertheless."""

    stored = 0


class StoreTimeout(StoreError):
    """The store didn't answer before the deadline."""


class StoreFull(StoreError):
    """The store has no room for the object."""


class LoadError(KVLinguaError):
    """A load that was promised did not happen, at least not as a whole: the engine must compute all of those tokens."""


class LoadCancelled(LoadError):
    """The caller gave the load up while it waited or was under way."""
