"""vLLM as a driver. Options of an ask: `sampling` (further SamplingParams), `lora` (an adapter's folder), `lora_name`
(if not one of its own), `embeds` (a safetensors file holding `embeds` [token, hidden], used in place of token ids)."""

import pkgutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from engines.drivers.protocol import Answer, Ask, Launch, Reply, serve

SOURCES = {"external_kv_transfer": "reused", "local_cache_hit": "local", "local_compute": "computed"}


class Vllm:
    """vLLM's LLM class: greedy, token ids in and out, no tokenizer needed."""

    def __init__(self, launch: Launch) -> None:
        import vllm

        connector = {
            "kv_connector": "KVLingua",
            "kv_role": f"kv_{launch.role}",
            "kv_connector_extra_config": dict(launch.config),
        }
        arguments: dict[str, Any] = {
            "model": launch.model,
            "dtype": launch.dtype,
            "block_size": launch.page,
            "max_model_len": launch.max_model_len,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "skip_tokenizer_init": True,
            "disable_log_stats": False,
            "seed": 0,
            **({"kv_transfer_config": connector} if launch.cache else {}),
            **launch.engine,
        }
        self.version = vllm.__version__
        self._llm = vllm.LLM(**arguments)
        self.page = int(self._llm.llm_engine.vllm_config.cache_config.block_size)
        self._loras: dict[str, Any] = {}

    def generate(self, asks: Sequence[Ask]) -> Reply:
        from vllm import SamplingParams

        prompts = [self._prompt(ask) for ask in asks]
        sampling = [
            SamplingParams(
                **{
                    "temperature": 0,
                    "max_tokens": ask.max_tokens,
                    "ignore_eos": True,
                    "detokenize": False,
                    **ask.options.get("sampling", {}),
                }
            )
            for ask in asks
        ]
        loras = [self._lora(ask.options.get("lora"), ask.options.get("lora_name")) for ask in asks]
        before, start = self._counts(), time.monotonic()
        outputs = self._llm.generate(prompts, sampling, lora_request=loras if any(loras) else None, use_tqdm=False)
        seconds, after = time.monotonic() - start, self._counts()
        answers = [
            Answer(
                tokens=list(output.outputs[0].token_ids),
                prompt_tokens=len(output.prompt_token_ids or ask.prompt),
                reused=output.num_cached_tokens or 0,
                ttft_s=output.metrics.first_token_latency if output.metrics else None,
            )
            # After a step that failed vLLM goes on with what it had, whose outputs come first.
            for ask, output in zip(asks, outputs[-len(asks) :], strict=True)
        ]
        return Reply(answers, **{name: after[name] - before[name] for name in after}, seconds=seconds)

    def call(self, method: str, arguments: Mapping[str, Any]) -> object:
        """reset_prefix_cache(**), collective_rpc(method, arguments), metric(name): a counter's value,
        abort_after(prompt, steps)."""
        if method == "reset_prefix_cache":
            return self._llm.reset_prefix_cache(**arguments)
        if method == "collective_rpc":
            name = arguments["method"]  # of the worker's, or module:function, which gets the worker
            method = pkgutil.resolve_name(name) if ":" in name else name
            self._llm.collective_rpc(method, kwargs=dict(arguments.get("arguments", {})))
            return None
        if method == "metric":
            return sum(metric.value for metric in self._llm.get_metrics() if metric.name == arguments["name"])
        if method == "abort_after":
            return self._abort_after(**arguments)
        raise LookupError(f"no method {method!r}; there are reset_prefix_cache, collective_rpc, metric, abort_after")

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    def _abort_after(self, prompt: Sequence[int], steps: int) -> bool:
        """Hand in a prompt and give it up after that many steps of the engine. Whether it hadn't ended by then."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        sampling = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, detokenize=False)
        request = engine.add_request(f"aborted-{time.monotonic_ns()}", {"prompt_token_ids": list(prompt)}, sampling)
        for _ in range(steps):
            engine.step()
        unfinished = bool(engine.has_unfinished_requests())
        engine.abort_request([request], internal=True)
        return unfinished

    def _prompt(self, ask: Ask) -> dict[str, Any]:
        if "embeds" in ask.options:
            from safetensors.torch import load_file

            return {"prompt_embeds": load_file(ask.options["embeds"])["embeds"]}
        prompt: dict[str, Any] = {"prompt_token_ids": list(ask.prompt)}
        if ask.cache_salt is not None:
            prompt["cache_salt"] = ask.cache_salt
        return prompt

    def _lora(self, folder: str | None, name: str | None) -> Any:
        if folder is None:
            return None
        from vllm.lora.request import LoRARequest

        if folder not in self._loras:
            number = len(self._loras) + 1
            self._loras[folder] = LoRARequest(name or f"lora-{number}", number, folder)
        return self._loras[folder]

    def _counts(self) -> dict[str, int]:
        """vLLM's own counters: prompt tokens in all, and by where they came from."""
        counts = {"prompt_tokens": 0, **dict.fromkeys(SOURCES.values(), 0)}
        for metric in self._llm.get_metrics():
            if metric.name == "vllm:prompt_tokens":
                counts["prompt_tokens"] += int(metric.value)
            elif metric.name == "vllm:prompt_tokens_by_source":
                counts[SOURCES[metric.labels["source"]]] += int(metric.value)
        return counts


if __name__ == "__main__":
    serve(Vllm)
