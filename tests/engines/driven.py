"""Drivers as engines of the conformance suite, with the demo's model and its documents as prompts."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.numpy import load_file, save_file

from demo.documents import make_document
from demo.job import MODEL
from engines.drivers.driver import Driver
from engines.drivers.protocol import Ask
from kvlingua.adapters.conformance import AdapterConformance, Answered, HangingStore, Prompt, RunningEngine, Setup
from kvlingua.adapters.conformance.checks import Cold
from kvlingua.adapters.conformance.prompts import Prompts
from kvlingua.adapters.conformance.suite import Written
from tests.engines.reference import answer
from tests.hanging import hanging_folder, why_not

QUESTION = 12  # tokens, about
FORGET_SECONDS = 30.0


class Driven:
    """A driver. `forget`: the call that empties the engine's own prefix cache, if it has one."""

    def __init__(self, driver: Driver, forget: str | None) -> None:
        self.driver = driver
        self._forget = forget

    @property
    def namespace(self) -> str | None:
        return self.driver.namespace

    def generate(self, *prompts: Prompt) -> Answered:
        reply = self.driver.generate(*(Ask(prompt.tokens, options=prompt.options) for prompt in prompts))
        return Answered([answer.tokens for answer in reply.answers], reply.reused, reply.computed)

    def forget(self) -> None:
        end = time.monotonic() + FORGET_SECONDS
        while self._forget is not None and not self.driver.call(self._forget):
            assert time.monotonic() < end, f"{self._forget} is refused"  # a request that was given up may still end

    def cancel(self, prompt: Prompt, steps: int) -> bool:
        return bool(self.driver.call("abort_after", prompt=prompt.tokens, steps=steps))

    def metric(self, name: str, **labels: str) -> float:
        return self.driver.metric(name, **labels)


class DrivenConformance(AdapterConformance):
    """Derive, and set `engine` and what it takes."""

    engine: ClassVar[str]
    arguments: ClassVar[Mapping[str, Any]] = {}
    settings: ClassVar[Mapping[str, str]] = {}
    forget: ClassVar[str | None] = None
    model = MODEL

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Of the engines' logs, and another model."""
        cls.logs = tmp_path_factory.mktemp("logs")
        cls.other_model = cls.logs / "other"
        shutil.copytree(MODEL, cls.other_model)
        weights = load_file(cls.other_model / "model.safetensors")
        changed = {name: 1.5 * one for name, one in weights.items()}
        save_file(changed, cls.other_model / "model.safetensors", metadata={"format": "pt"})

    logs: ClassVar[Path]
    started: ClassVar[int] = 0

    @classmethod
    def start(cls, setup: Setup) -> AbstractContextManager[RunningEngine]:
        cls.started += 1
        return cls.driven(
            Driver(
                cls.engine,
                setup.model,
                log=cls.logs / f"{cls.started}.log",
                url=setup.store.as_uri() if setup.store else None,
                cache=setup.store is not None,
                page=setup.page,
                dtype=setup.dtype,
                role=setup.role,
                config=setup.config,
                engine=cls.arguments,
                settings=cls.settings,
            )
        )

    @classmethod
    @contextmanager
    def driven(cls, driver: Driver) -> Iterator[RunningEngine]:
        with driver:
            yield Driven(driver, cls.forget)

    @pytest.fixture(scope="class")
    @classmethod
    def cold(cls, prompts: Prompts) -> Cold:
        """transformers' answers, without starting an engine."""
        return {tuple(prompt.tokens): answer(Ask(prompt.tokens)) for prompt in prompts.all}

    @classmethod
    def prompt(cls, seed: int, tokens: int) -> Sequence[int]:
        document = make_document(seed=7000 + seed, length=tokens - QUESTION, questions=1)
        return document.prompt(document.questions[0])

    def test_another_dtype_is_a_miss(self, prompts: Prompts, written: Written) -> None:
        super().test_another_dtype_is_a_miss(prompts, written)
        command = [str(Path(sys.executable).with_name("kvlingua")), "doctor", str(written.store)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "kv_dtype: bfloat16 here, float32 there" in said

    @classmethod
    def hanging_store(cls, folder: Path) -> AbstractContextManager[HangingStore] | None:
        return hanging_folder(folder) if why_not() is None else None
