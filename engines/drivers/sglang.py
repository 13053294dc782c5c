"""SGLang as a driver. Options of an ask: `sampling` (further sampling parameters), `request` (further fields of
SGLang's GenerateReqInput), `overrides` (positions and embeds that replace tokens' own), `abort_after_s`."""

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
        raise LookupError(f"no method {method!r}; there are flush_cache, open_session, update_weights_from_disk")

    def close(self) -> None:
        self._engine.shutdown()

    async def _together(self, asks: Sequence[Ask]) -> list[Answer]:
        return list(await asyncio.gather(*(self._answer(ask) for ask in asks)))

    async def _answer(self, ask: Ask) -> Answer:
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
        if "abort_after_s" in ask.options:
            abort = self._engine.tokenizer_manager.abort_request
            asyncio.get_running_loop().call_later(ask.options["abort_after_s"], lambda: abort(rid=request.rid))
        tokens: list[int] = []
        async for chunk in self._engine.tokenizer_manager.generate_request(request, None):
            first = first or time.monotonic() - start
            tokens, last = chunk["output_ids"], chunk["meta_info"]
        # One that was aborted while it waited has no counts.
        return Answer(list(tokens), last.get("prompt_tokens", 0), last.get("cached_tokens", 0), first)

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


def _overrides(positions: list[int], embeds: list[list[float]]) -> Any:
    import torch
    from sglang.srt.managers.embed_types import PositionalEmbeds

    return PositionalEmbeds(embeds=[torch.tensor(row) for row in embeds], positions=positions)


if __name__ == "__main__":
    serve(SGLang)
