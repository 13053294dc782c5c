"""Hugging Face transformers as a driver: `model.generate`, one prompt after the other. `page` means nothing to it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from engines.drivers.protocol import Answer, Ask, Launch, Reply, serve


class HuggingFace:
    """A model loaded with `from_pretrained`, with kvlingua attached to it or not."""

    page = 1

    def __init__(self, launch: Launch) -> None:
        import torch
        import transformers

        self.version = transformers.__version__
        self._torch = torch
        arguments: dict[str, Any] = {"dtype": getattr(torch, launch.dtype), **launch.engine}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(launch.model, **arguments).eval()
        self._cache = None
        if launch.cache:
            import kvlingua

            self._cache = kvlingua.KVCache.open(kvlingua.Config.resolve(role=launch.role, **launch.config))
            kvlingua.hf.attach(self.model, self._cache)
        self._adapters: dict[str, str] = {}  # names by folder
        self._computed = 0
        self._first_forward = False
        if not launch.cache:  # kvlingua counts itself, and passes by a model with hooks of others
            self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def generate(self, asks: Sequence[Ask]) -> Reply:
        start, computed, answers = time.monotonic(), self._computed, []
        for ask in asks:
            if ask.cache_salt is not None or ask.extra_key is not None:
                raise ValueError("transformers knows neither cache_salt nor extra_key")
            answers.append(self._answer(ask))
        return Reply(
            answers,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            reused=sum(answer.reused for answer in answers),
            local=0,
            computed=self._computed - computed,
            seconds=time.monotonic() - start,
        )

    def call(self, method: str, arguments: Mapping[str, Any]) -> object:
        if method == "own_cache":
            return self._own_cache(**arguments)
        if method == "abort_after":
            return self._abort_after(**arguments)
        if method == "use_adapter":
            self._use_adapter(**arguments)
            return None
        raise LookupError(f"no method {method!r}; there are own_cache, abort_after, use_adapter")

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _answer(self, ask: Ask) -> Answer:
        ids = self._torch.tensor([list(ask.prompt)])
        times: list[float] = []

        def note_time(tokens: Any, scores: Any, **_: Any) -> Any:
            times.append(time.monotonic())
            return self._torch.zeros(tokens.shape[0], dtype=self._torch.bool)

        self._first_forward = True
        start = time.monotonic()
        output = self.model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=ask.max_tokens,
            min_new_tokens=ask.max_tokens,
            stopping_criteria=[note_time],
            **ask.options,
        )
        last = self.model.kvlingua.last if self._cache is not None else None
        if last is not None:
            self._computed += last.computed
        return Answer(
            tokens=output[0, len(ask.prompt) :].tolist(),
            prompt_tokens=len(ask.prompt),
            reused=last.reused if last is not None else 0,
            ttft_s=times[0] - start,
        )

    def _own_cache(self, prefix: Sequence[int], question: Sequence[int]) -> float:
        """Seconds to the first token where the caller kept the prefix's cache object: the floor of any reuse."""
        from transformers import DynamicCache

        past = DynamicCache(config=self.model.config)
        arguments = {"past_key_values": past, "do_sample": False, "max_new_tokens": 1}
        ids = self._torch.tensor([[*prefix, *question]])
        known = ids[:, : len(prefix)]
        self.model.generate(known, attention_mask=self._torch.ones_like(known), **arguments)
        start = time.monotonic()
        self.model.generate(ids, attention_mask=self._torch.ones_like(ids), **arguments)
        return time.monotonic() - start

    def _abort_after(self, prompt: Sequence[int], steps: int) -> bool:
        """Break off by an exception after that many forwards, as a streaming server does whose client has gone; 0: in
        the first one. Whether it came to that."""
        left = [steps]

        class GivenUp(Exception):
            pass

        def give_up(*_: Any, **__: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise GivenUp
            return self._torch.zeros(1, dtype=self._torch.bool)

        ids = self._torch.tensor([list(prompt)])
        arguments: dict[str, Any] = {"do_sample": False, "max_new_tokens": steps + 8, "min_new_tokens": steps + 8}
        arguments |= {"logits_processor": [give_up]} if steps == 0 else {"stopping_criteria": [give_up]}
        try:
            self.model.generate(ids, attention_mask=self._torch.ones_like(ids), **arguments)
        except GivenUp:
            return True
        return False

    def _use_adapter(self, folder: str | None) -> None:
        """From the next prompt on, compute with the LoRA adapter in that folder; None: without."""
        if folder is None:
            if self._adapters:
                self.model.disable_adapters()
            return
        if folder not in self._adapters:
            self._adapters[folder] = f"adapter{len(self._adapters)}"
            self.model.load_adapter(folder, adapter_name=self._adapters[folder])
        self.model.enable_adapters()
        self.model.set_adapter(self._adapters[folder])

    def _count(self, module: object, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        """The input length of each generate's first forward: what is computed of the prompt."""
        if self._first_forward:
            self._first_forward = False
            self._computed += named["input_ids"].shape[1]


if __name__ == "__main__":
    serve(HuggingFace)
