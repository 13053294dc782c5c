"""The handle on an attached model, and the `generate` that stands in front of the model's own."""

import copy
import functools
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvlingua.adapters.hf.forward_counter import ForwardCounter
from kvlingua.adapters.hf.identity import identify
from kvlingua.adapters.hf.live_state import LiveState, check_runs_as_described
from kvlingua.adapters.hf.request import Prompt, read_prompt
from kvlingua.adapters.hf.views import LAYOUT, empty_layers, row_pool
from kvlingua.common import log
from kvlingua.common.cache import Hit, KVCache
from kvlingua.common.errors import LayoutError, UnsupportedError
from kvlingua.common.guard import Guard
from kvlingua.common.identity.namespace import Namespace
from kvlingua.common.metrics import refused
from kvlingua.common.prefix import reusable_tokens

ADAPTER = "hf"
_PAGE = 1  # a DynamicCache may begin and end anywhere


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


@dataclass
class _Call:
    """One understood call: its prompt, what was found of each row, and the cache that `generate` fills.

    held: tokens of each row that needn't be stored. reused, computed: as in LastCall.
    """

    namespace: Namespace
    state: LiveState
    prompt: Prompt
    hits: tuple[Hit, ...]
    held: tuple[int, ...]
    past: DynamicCache
    reused: int = 0
    computed: int = 0


class Attachment:
    """What `model.kvlingua` is. `attach` makes it; `detach` ends it."""

    def __init__(self, model: Any, cache: KVCache, owns_cache: bool) -> None:
        self.cache = cache
        self.last: LastCall | None = None
        self._model = model
        self._owns_cache = owns_cache
        self._guard = Guard(ADAPTER)
        self._lock = threading.Lock()
        self._state: LiveState | None = None
        self._namespace: Namespace | UnsupportedError = UnsupportedError("not_identified", "not identified yet")
        self._shadowed: Callable[..., Any] | None = vars(model).get("generate")
        self._original: Callable[..., Any] = model.generate
        self._counter = ForwardCounter(model)
        self._told_nearest: Namespace | None = None
        self._attached = True
        model.generate = Generate(self, self._original)
        model.kvlingua = self
        self.refresh()

    @property
    def namespace(self) -> Namespace | None:
        """Where this model's KV is stored; None while kvlingua is off for it."""
        return self._namespace if isinstance(self._namespace, Namespace) else None

    def refresh(self) -> None:
        """Identify the model anew. Needed only after writes that torch doesn't count, such as
        `parameter.data.add_(1)`."""
        with self._lock:
            self._state = None
            self._guard.run("identification", None, self._identify_if_changed)

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
        call, reason = self._guard.run("lookup", (None, "error"), self._prepare, args, kwargs)
        if call is None:
            with self._counter.counting() as count:
                result = self._original(*args, **kwargs)
            self.last = LastCall(count.first, 0, count.computed, reason)
            return result
        with self._counter.counting(call.past, call.prompt.width) as count:
            result = self._original(*args, **(kwargs | {"past_key_values": call.past}))
        call.computed = count.computed
        self.last = LastCall(call.prompt.width, call.reused, call.computed)
        if self._attached:
            self._guard.run("store", None, self._store, call)
            self._guard.run("nearest", None, self._tell_nearest, call)
        return result

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Call | None, str | None]:
        try:
            check_runs_as_described(self._model)
            with self._lock:
                state, namespace = self._identify_if_changed(), self._namespace
            if isinstance(namespace, UnsupportedError):
                raise namespace
            prompt = read_prompt(self._model, self._original, args, kwargs)
        except UnsupportedError as error:
            refused(ADAPTER, error.reason)
            log.logger.debug("hf: a call passes through: %s", error)
            return None, error.reason
        hits = tuple(self.cache.lookup(namespace, row) for row in prompt.rows)
        call = _Call(namespace, state, prompt, hits, tuple(hit.tokens for hit in hits), self._empty_past(namespace))
        columns = min(
            pad + reusable_tokens(hit.tokens, len(row), _PAGE)
            for pad, row, hit in zip(prompt.pads, prompt.rows, hits, strict=True)
        )
        if columns > min(prompt.pads) and not self._guard.promised("load", self._load, call, columns):
            call.held = (0,) * len(hits)  # `generate` computes all, and what proved damaged or gone is stored again
        return call, None

    def _identify_if_changed(self) -> LiveState:
        state = LiveState.of(self._model)
        if state != self._state:
            self._namespace = self._identify()
            self._state = state
        return state

    def _identify(self) -> Namespace | UnsupportedError:
        unexpected = UnsupportedError("identification", "the model could not be identified")
        found = self._guard.run("identification", unexpected, self._try_identify)
        if isinstance(found, UnsupportedError):
            if str(found) != str(self._namespace):  # said once, however often the weights of such a model change
                log.logger.warning("off: %s", found)
        else:
            log.logger.info(
                "on: %s, namespace %s, layout %s, page %d, store %s",
                *(ADAPTER, found.digest[:12], LAYOUT, _PAGE, self.cache.describe()),
            )
        return found

    def _try_identify(self) -> Namespace | UnsupportedError:
        try:
            if self._shadowed is not None:
                raise UnsupportedError("generate_replaced", "the model's generate is replaced on the instance")
            return identify(self._model, self.cache.config)
        except UnsupportedError as error:
            return error

    def _empty_past(self, namespace: Namespace) -> DynamicCache:
        past = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        if len(past.layers) != namespace.layers or any(type(layer) is not DynamicLayer for layer in past.layers):
            raise LayoutError(f"transformers gives this model layers other than {namespace.layers} times DynamicLayer")
        return past

    def _load(self, call: _Call, columns: int) -> None:
        """Put a cache that holds the first `columns` columns of every row in the place of the empty one."""
        prompt = call.prompt
        layers = empty_layers(call.namespace, len(prompt.rows), columns)
        for row, (pad, hit) in enumerate(zip(prompt.pads, call.hits, strict=True)):
            if pad < columns:
                view = row_pool(call.namespace, layers, row).view([0], pad, columns)
                self.cache.load(hit, view, 0, columns - pad)
        past = self._empty_past(call.namespace)
        device = self._model.device
        for number, (keys, values) in enumerate(layers):
            past.update(keys.to(device), values.to(device), number)
        call.past, call.reused = past, columns

    def _store(self, call: _Call) -> None:
        """Store the whole chunks of each row's prompt that the store didn't hold."""
        prompt, chunk_tokens = call.prompt, call.namespace.chunk_tokens
        rows = [row for row, tokens in enumerate(prompt.rows) if call.held[row] + chunk_tokens <= len(tokens)]
        if not rows:
            return
        if call.reused + call.computed != prompt.width:
            raise UnsupportedError(
                "prompt_width", f"the model was given {call.computed} columns, not {prompt.width - call.reused}"
            )
        if LiveState.of(self._model) != call.state:
            raise UnsupportedError("weights_changed", "the model changed while it generated")
        layers = [(layer.keys.cpu(), layer.values.cpu()) for layer in call.past.layers]  # of a GPU: a copy
        if layers[0][0].shape[0] != len(prompt.rows) or layers[0][0].shape[2] < prompt.width:
            raise LayoutError("the cache doesn't hold the prompt after generate")
        for row in rows:
            pad, tokens, held = prompt.pads[row], prompt.rows[row], call.held[row]
            view = row_pool(call.namespace, layers, row).view([0], pad + held, prompt.width)
            self.cache.store(call.namespace, tokens, view, held, len(tokens))

    def _tell_nearest(self, call: _Call) -> None:
        """Once, when nothing hits that could: the nearest other namespace stored, and what would have to be equal."""
        could_hit = any(len(row) >= call.namespace.chunk_tokens for row in call.prompt.rows)
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
