"""kvlingua: an interlingua for KV caches.

`import kvlingua` loads no torch and no engine; the public names below are imported at first use.
The sub-packages `adapters`, `common` and `layouts` are links to the repository's top-level folders.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlingua.adapters import hf
    from kvlingua.common.cache import KVCache
    from kvlingua.common.config import Config
    from kvlingua.common.errors import KVLinguaError

__version__ = "0.1.0"
__all__ = ["Config", "KVCache", "KVLinguaError", "__version__", "hf"]

# Public name -> (module, attribute in it); no attribute: the module itself.
_PUBLIC = {
    "Config": ("kvlingua.common.config", "Config"),
    "KVCache": ("kvlingua.common.cache", "KVCache"),
    "KVLinguaError": ("kvlingua.common.errors", "KVLinguaError"),
    "hf": ("kvlingua.adapters.hf", None),
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kvlingua' has no attribute {name!r}; public names: {', '.join(sorted(__all__))}")
    module, attribute = _PUBLIC[name]
    value: object = import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
