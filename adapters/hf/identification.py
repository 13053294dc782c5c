"""Which model is this, right now? Answered for every call, computed anew only when something changed."""

import threading
from collections import OrderedDict
from typing import Any

from kvlingua.adapters.hf.generation import PAGE
from kvlingua.adapters.hf.identity import identify
from kvlingua.adapters.hf.live_state import LiveState
from kvlingua.adapters.hf.lora import lora_digest, lora_layers
from kvlingua.adapters.hf.views import LAYOUT
from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.lora import with_adapter
from kvlingua.common.identity.namespace import Namespace

_KEPT_ADAPTERS = 8  # whose digests are remembered, so that switching between them costs nothing


class Identification:
    """Of one attached model; from any thread. replaced: whether its `generate` had been replaced before."""

    def __init__(self, model: Any, cache: KVCache, guard: Guard, replaced: bool) -> None:
        self._model = model
        self._cache = cache
        self._guard = guard
        self._replaced = replaced
        self._lock = threading.Lock()
        self._state: LiveState | None = None
        self._said = ""
        self._base: Namespace | UnsupportedError = UnsupportedError("not_identified", "not identified yet")
        self._adapters: OrderedDict[tuple[object, ...], tuple[LiveState, str | None]] = OrderedDict()

    @property
    def namespace(self) -> Namespace | None:
        """As of `now`; None where that can't be said."""
        return self._guard.run("identification", None, self._namespace_or_none)

    def now(self) -> tuple[LiveState, Namespace]:
        """The model's state and its namespace. Raises UnsupportedError where kvlingua is off for it."""
        with self._lock:
            state = LiveState.of(self._model)
            if self._state is None or state.model != self._state.model:
                self._base = self._identify()
            self._state = state
            if isinstance(self._base, UnsupportedError):
                raise self._base
            digest = self._digest(state)
            return state, self._base if digest is None else with_adapter(self._base, digest)

    def refresh(self) -> None:
        """Forget what was found and look again."""
        with self._lock:
            self._state = None
            self._adapters.clear()
        self._guard.run("identification", None, self._namespace_or_none)

    def _namespace_or_none(self) -> Namespace | None:
        try:
            return self.now()[1]
        except UnsupportedError as error:
            self._say_off(error)
            return None

    def _digest(self, state: LiveState) -> str | None:
        """Of the adapters that act. The state is kept with it, and keeps their tensors alive."""
        found = self._adapters.pop(state.adapters, None) or (state, lora_digest(lora_layers(self._model)))
        self._adapters[state.adapters] = found
        if len(self._adapters) > _KEPT_ADAPTERS:
            self._adapters.popitem(last=False)
        return found[1]

    def _identify(self) -> Namespace | UnsupportedError:
        unexpected = UnsupportedError("identification", "the model could not be identified")
        found = self._guard.run("identification", unexpected, self._try_identify)
        if isinstance(found, UnsupportedError):
            self._say_off(found)
        else:
            log.logger.info(
                "on: hf, namespace %s, layout %s, page %d, store %s",
                *(found.digest[:12], LAYOUT, PAGE, self._cache.describe()),
            )
        return found

    def _say_off(self, error: UnsupportedError) -> None:
        if str(error) != self._said:  # once, however often the weights of such a model change
            self._said = str(error)
            log.logger.warning("off: %s", error)

    def _try_identify(self) -> Namespace | UnsupportedError:
        try:
            if self._replaced:
                raise UnsupportedError("generate_replaced", "the model's generate is replaced on the instance")
            return identify(self._model, self._cache.config)
        except UnsupportedError as error:
            return error
