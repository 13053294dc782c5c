"""The shipped conformance suite, run on transformers."""

from typing import ClassVar

from kvlingua.adapters.conformance import Passing
from tests.engines.driven import DrivenConformance


class TestHuggingFace(DrivenConformance):
    engine = "hf"
    passing: ClassVar = [
        Passing("speculation", lambda tokens: {"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        Passing("no cache", lambda tokens: {"use_cache": False}, "use_cache"),
    ]
