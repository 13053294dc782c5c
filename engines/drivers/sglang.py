"""SGLang as a driver. Options of an ask: `sampling` (further sampling parameters), `request` (further fields of
SGLang's GenerateReqInput, such as lora_path, an adapter's name), `overrides` (positions and embeds that replace tokens'
own), `abort_when` ([number of another ask, tokens]: this one is given up when that one, of the same command, has as
many, or has ended)."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engines.drivers.protocol import Answer, Ask, Launch, Reply, serve

SETTLE_SECONDS = 5.0
# SGLang's own counters, as (metric, mode), and what a Reply calls them.
COUNTERS = {
    ("sglang:realtime_tokens_total", "prefill_compute"): "computed",
    ("sglang:prefill_effective_tokens_total", "host_hit"): "reused",
    ("sglang:prefill_effective_tokens_total", "storage_hit"): "reused",
    ("sglang:prefill_effective_tokens_total", "device_hit"): "local",
}


class SGLang:
    """SGLang's Engine: greedy, token ids in and out, no tokenizer needed."""

    def __init__(self, launch: Launch) -> None:
        import sglang

        # The flag takes no configuration with it: SGLang's processes read the variables.
        os.environ.update({f"KVLINGUA_{key.upper()}": str(value) for key, value in launch.config.items()})
        os.environ["KVLINGUA_ROLE"] = launch.role
        arguments: dict[str, Any] = {
            "model_path": launch.model,
            "dtype": launch.dtype,
            "page_size": launch.page,
            "context_length": launch.max_model_len,
            "max_total_tokens": 4 * launch.max_model_len,
            "max_running_requests": 8,
            # A bound on what others on the machine may take while it starts; max_total_tokens says what is used.
            "mem_fraction_static": 0.6,
            "device": "cpu",
            "attention_backend": "torch_native",
            "disable_cuda_graph": True,
            "skip_tokenizer_init": True,
            "enable_metrics": True,
            "random_seed": 0,
            "log_level": "info",
            "sleep_on_idle": True,  # else its scheduler keeps a core busy that others need
            **({"radix_cache_backend": "kvlingua"} if launch.cache else {}),
            **launch.engine,
        }
        self.version = sglang.__version__
        self.page = int(arguments["page_size"])
        self._engine = sglang.Engine(**arguments)

    def generate(self, asks: Sequence[Ask]) -> Reply:
        before, start = self._counts(), time.monotonic()
        answers: list[Answer] = self._engine.loop.run_until_complete(self._together(asks))
        seconds = time.monotonic() - start
        prompts = sum(answer.prompt_tokens for answer in answers)
        grown = self._grown(before)
        while sum(grown.values()) < prompts and time.monotonic() - start - seconds < SETTLE_SECONDS:
            time.sleep(0.01)  # the scheduler's process counts after it has answered
            grown = self._grown(before)
        return Reply(answers, prompt_tokens=prompts, **grown, seconds=seconds)

    def call(self, method: str, arguments: Mapping[str, Any]) -> object:
        from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput

        manager, loop = self._engine.tokenizer_manager, self._engine.loop
        if method == "flush_cache":
            return bool(self._engine.flush_cache().success)
        if method == "open_session":
            return str(self._engine.open_session(**arguments))
        if method == "update_weights_from_disk":
            update = UpdateWeightFromDiskReqInput(**arguments)
            return bool(loop.run_until_complete(manager.update_weights_from_disk(update, None))[0])
        if method in ("attach_hicache_storage", "detach_hicache_storage"):
            return bool(loop.run_until_complete(getattr(manager, method)(**arguments)).success)
        if method in ("load_lora_adapter", "unload_lora_adapter"):
            return str(getattr(self._engine, method)(**arguments).error_message)
        if method == "abort_after":  # steps: tokens that it has by then
            given_up = Ask(arguments["prompt"], 64, options={"abort_when": [0, arguments["steps"]]})
            (answer,) = loop.run_until_complete(self._together([given_up]))
            return len(answer.tokens) < given_up.max_tokens
        known = "abort_after, flush_cache, load_lora_adapter, unload_lora_adapter, open_session"
        raise LookupError(f"no method {method!r}; there are {known}, update_weights_from_disk")

    def close(self) -> None:
        self._engine.shutdown()

    async def _together(self, asks: Sequence[Ask]) -> list[Answer]:
        progress = _Progress(len(asks))
        return list(await asyncio.gather(*(self._answer(ask, number, progress) for number, ask in enumerate(asks))))

    async def _answer(self, ask: Ask, number: int, progress: "_Progress") -> Answer:
        from sglang.srt.managers.io_struct import GenerateReqInput

        sampling = {"temperature": 0, "max_new_tokens": ask.max_tokens, "ignore_eos": True}
        fields: dict[str, Any] = {
            "input_ids": list(ask.prompt),
            "sampling_params": sampling | ask.options.get("sampling", {}),
            "cache_salt": ask.cache_salt,
            "extra_key": ask.extra_key,
            "stream": True,
            **ask.options.get("request", {}),
        }
        if "overrides" in ask.options:
            fields["positional_embed_overrides"] = _overrides(**ask.options["overrides"])
        if fields.get("input_embeds") is not None:
            del fields["input_ids"]
        request = GenerateReqInput(**fields)
        request.regenerate_rid()
        start, first, last = time.monotonic(), None, dict[str, Any]()
        if "abort_when" in ask.options:
            abort = asyncio.create_task(self._abort(request.rid, progress, *ask.options["abort_when"]))
            progress.tasks.append(abort)
        tokens: list[int] = []
        try:
            async for chunk in self._engine.tokenizer_manager.generate_request(request, None):
                first = first or time.monotonic() - start
                tokens, last = chunk["output_ids"], chunk["meta_info"]
                await progress.reached(number, len(tokens))
        finally:
            await progress.reached(number, float("inf"))
        # One that was aborted while it waited has no counts.
        return Answer(list(tokens), last.get("prompt_tokens", 0), last.get("cached_tokens", 0), first)

    async def _abort(self, rid: str, progress: "_Progress", other: int, tokens: int) -> None:
        await progress.wait(other, tokens)
        self._engine.tokenizer_manager.abort_request(rid=rid)

    def _grown(self, before: Mapping[str, int]) -> dict[str, int]:
        return {name: value - before[name] for name, value in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        """What SGLang's processes have counted, which they keep in files (Prometheus' multiprocess mode)."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        metrics = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
        counts = dict.fromkeys(COUNTERS.values(), 0)
        for sample in (sample for metric in metrics for sample in metric.samples):
            name = COUNTERS.get((sample.name, sample.labels.get("mode", "")))
            if name is not None:
                counts[name] += int(sample.value)
        return counts


class _Progress:
    """How many tokens each of `count` asks that run together has so far; no end of them once it has ended."""

    def __init__(self, count: int) -> None:
        self.tasks: list[asyncio.Task[None]] = []  # those that wait, so that they aren't collected
        self._tokens = [0.0] * count
        self._changed = asyncio.Condition()

    async def reached(self, number: int, tokens: float) -> None:
        async with self._changed:
            self._tokens[number] = tokens
            self._changed.notify_all()

    async def wait(self, number: int, tokens: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._tokens[number] >= tokens)


def _overrides(positions: list[int], embeds: list[list[float]]) -> Any:
    import torch
    from sglang.srt.managers.embed_types import PositionalEmbeds

    return PositionalEmbeds(embeds=[torch.tensor(row) for row in embeds], positions=positions)


if __name__ == "__main__":
    serve(SGLang)
