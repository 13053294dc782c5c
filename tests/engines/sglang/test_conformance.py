"""The shipped conformance suite, run on SGLang."""

from typing import ClassVar

from kvlingua.adapters.conformance import Passing
from tests.engines.driven import DrivenConformance


class TestSGLang(DrivenConformance):
    engine = "sglang"
    pages = (64, 16)
    arguments: ClassVar = {"chunked_prefill_size": 256}
    forget = "flush_cache"
    passing: ClassVar = [
        Passing(
            "replaced embeddings",
            lambda tokens: {"overrides": {"positions": [1], "embeds": [[0.0] * 128]}},
            "embedding_overrides",
        )
    ]
