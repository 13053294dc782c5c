"""Hugging Face transformers: `attach` a cache to a model, and `generate` reuses prompts that any engine has read.

import kvlingua
model = kvlingua.hf.attach(model, "file:///var/cache/kv")
model.generate(**inputs)
kvlingua.hf.detach(model)
"""

from typing import Any, TypeVar

import torch

from kvlingua.adapters.hf.attachment import Attachment, LastCall
from kvlingua.common.cache import KVCache
from kvlingua.common.config import Config

__all__ = ["Attachment", "LastCall", "attach", "detach"]

M = TypeVar("M")


def attach(model: M, cache: KVCache | Config | str | None = None) -> M:
    """Let `model.generate` load the longest stored prefix of its prompts, and store what is new. Returns the model.

    model: a transformers model with `generate`, or PEFT's model around one, in which the inner model is attached.
    cache: an open KVCache, which stays the caller's to close; or a Config or a store's URL, which is opened here and
    closed by `detach`; or None: the configuration of this process. A model that is attached already is detached first.

    `model.kvlingua` is the Attachment: `.last`, `.namespace`, `.refresh()`, `.detach()`. Blocks until the model is
    identified, which reads its weight files or hashes its weights. A model, or a single call, that kvlingua can't
    serve works as without it: one line in the log says why, for a call at level debug.

    Raises TypeError for something that isn't a model or a cache, ConfigError for a configuration that can't be right.
    """
    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "generate", None)):
        raise TypeError(f"expected a transformers model with generate(), got {type(model).__name__}")
    if cache is not None and not isinstance(cache, (KVCache, Config, str)):
        raise TypeError(f"expected a KVCache, a Config, a store's URL or None, got {type(cache).__name__}")
    detach(model)
    opened = cache if isinstance(cache, KVCache) else KVCache.open(cache)
    wrapped: Any = model
    inner = wrapped.get_base_model() if isinstance(getattr(model, "peft_type", None), str) else model
    Attachment(inner, opened, owns_cache=opened is not cache)
    return model


def detach(model: Any) -> None:
    """Undo `attach`: the model is as it was. Does nothing if it isn't attached."""
    handle = getattr(model, "kvlingua", None)
    if isinstance(handle, Attachment):
        handle.detach()
