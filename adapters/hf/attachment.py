"""The handle on an attached model, and the `generate` that stands in front of the model's own."""

import copy
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvlingua.adapters.hf import pasts
from kvlingua.adapters.hf.forward_counter import Count, ForwardCounter
from kvlingua.adapters.hf.generation import Generation
from kvlingua.adapters.hf.identification import Identification
from kvlingua.adapters.hf.live_state import LiveState, check_runs_as_described
from kvlingua.adapters.hf.request import read_request
from kvlingua.common import log
from kvlingua.common.cache import KVCache
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import refused

ADAPTER = "hf"


@dataclass(frozen=True)
class LastCall:
    """What the last finished `generate` did, in columns of the batch (for a single prompt: its tokens).

    prompt_tokens: columns of the prompt. reused: columns whose KV was loaded. computed: columns that the model's
    forward was given to read the prompt, counted there. passed_through: None, or why the call went by without the
    cache; then both prompt_tokens and computed are what the first forward was given.
    """

    prompt_tokens: int
    reused: int
    computed: int
    passed_through: str | None = None


class Attachment:
    """What `model.kvlingua` is. `attach` makes it; `detach` ends it."""

    def __init__(self, model: Any, cache: KVCache, owns_cache: bool) -> None:
        self.cache = cache
        self.last: LastCall | None = None
        self._model = model
        self._owns_cache = owns_cache
        self._guard = Guard(ADAPTER)
        self._shadowed: Callable[..., Any] | None = vars(model).get("generate")
        self._original: Callable[..., Any] = model.generate
        self._counter = ForwardCounter(model)
        self._identification = Identification(model, cache, self._guard, replaced=self._shadowed is not None)
        self._told_nearest: Namespace | None = None
        self._attached = True
        model.generate = Generate(self, self._original)
        model.kvlingua = self
        self.refresh()

    @property
    def namespace(self) -> Namespace | None:
        """Where this model's KV is stored, with the adapters that act at present; None while kvlingua is off for it."""
        return self._identification.namespace

    def refresh(self) -> None:
        """Identify the model anew. Needed only after writes that torch doesn't count, such as
        `parameter.data.add_(1)`."""
        self._identification.refresh()

    def detach(self) -> None:
        """Give the model its own `generate` back and leave no trace on it. What is queued is written first if
        `attach` opened the cache. A second call does nothing."""
        attributes = vars(self._model)
        generate = attributes.get("generate")
        if isinstance(generate, Generate) and generate.attachment is self:
            del attributes["generate"]
            if self._shadowed is not None:
                attributes["generate"] = self._shadowed
        if attributes.get("kvlingua") is self:
            del attributes["kvlingua"]
            ForwardCounter.remove_from(self._model)
        if self._attached and self._owns_cache:
            self.cache.close()
        self._attached = False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, with what the store holds of the prompt; the engine's own exceptions pass unchanged."""
        if not self._attached:
            return self._original(*args, **kwargs)
        call, state, reason = self._guard.run("lookup", (None, None, "error"), self._prepare, args, kwargs)
        if call is None or state is None:
            with self._counter.counting() as count:
                result = self._original(*args, **kwargs)
            self.last = LastCall(count.first, 0, count.computed, reason)
            return result
        changed = {"past_key_values": call.past, **call.request.changes}
        try:
            with self._counter.counting(call.past, call.request.width, call.reused) as count:
                result = self._original(*args, **(kwargs | changed))
            self.last = LastCall(call.request.width, call.reused, count.computed)
            if self._attached:
                self._guard.run("store", None, self._store, call, state, count)
                self._guard.run("nearest", None, self._tell_nearest, call)
        finally:
            self._guard.run("store", None, pasts.forget, call.past)
        return result

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Generation | None, LiveState | None, str | None]:
        try:
            check_runs_as_described(self._model)
            state, namespace = self._identification.now()
            request = read_request(self._model, self._original, args, kwargs)
            call = Generation(self._model, self.cache, namespace, request)
        except UnsupportedError as error:
            refused(ADAPTER, error.reason)
            log.logger.debug("hf: a call passes through: %s", error)
            return None, None, error.reason
        columns = call.look_up()
        if columns and not self._guard.promised("load", call.load, columns):
            call.give_up()
        return call, state, None

    def _store(self, call: Generation, state: LiveState, count: Count) -> None:
        if self.cache.config.role == "consumer":
            return
        if LiveState.of(self._model) != state:
            raise UnsupportedError("weights_changed", "the model changed while it generated")
        call.store(count)

    def _tell_nearest(self, call: Generation) -> None:
        """Once, when nothing hits that could: the nearest other namespace stored, and what would have to be equal."""
        could_hit = any(len(row) >= call.namespace.chunk_tokens for row in call.request.rows)
        if not could_hit or any(hit.tokens for hit in call.hits) or self.cache.config.role == "producer":
            return
        if self._told_nearest == call.namespace:
            return
        self._told_nearest = call.namespace
        nearest = self.cache.nearest(call.namespace)
        if nearest is not None:
            other, differences = nearest
            log.logger.info(
                "nothing of this prompt is stored for this model; the nearest other namespace is %s: %s",
                other.digest[:12],
                "; ".join(differences),
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        """A copy of the model isn't attached: its weights may go their own way. Its handle is one that has been
        detached."""
        model = memo.get(id(self._model), self._model)
        copied = object.__new__(Attachment)
        state = {"_model": model, "_attached": False, "last": None, "_shadowed": None}
        vars(copied).update(vars(self) | state, _original=types.MethodType(type(model).generate, model))
        return copied


class Generate:
    """The callable that stands in for `model.generate`; it looks like the original to `inspect.signature` and
    `help`."""

    def __init__(self, attachment: Attachment, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original, updated=())
        self.attachment = attachment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.attachment.generate(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Generate":
        attachment = copy.deepcopy(self.attachment, memo)
        return Generate(attachment, attachment._original)
