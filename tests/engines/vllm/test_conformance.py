"""The shipped conformance suite, run on vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file

from demo.job import MODEL
from kvlingua.adapters.conformance import Passing
from tests.engines.driven import DrivenConformance
from tests.engines.vllm.conftest import INSIDE


class TestVllm(DrivenConformance):
    engine = "vllm"
    pages = (64, 32)
    # Its own prefix cache can't be emptied: kvlingua takes that for a change of weights.
    arguments: ClassVar = {"enable_prefix_caching": False, "enable_prompt_embeds": True, "max_num_batched_tokens": 256}
    settings: ClassVar = INSIDE

    @property
    def passing(self) -> Sequence[Passing]:  # type: ignore[override]
        return [Passing("prompt embeddings", self.embeddings, "prompt_embeds")]

    def embeddings(self, tokens: Sequence[int]) -> Mapping[str, Any]:
        """Of the very tokens: without a refusal they'd be looked up as zeros."""
        weights = load_file(MODEL / "model.safetensors")["model.embed_tokens.weight"]
        file = self.logs / f"{len(tokens)}-{hash(tuple(tokens))}.safetensors"
        save_file({"embeds": weights[torch.tensor(tokens)].float().contiguous()}, file)
        return {"embeds": str(file)}
