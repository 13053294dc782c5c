"""A saved model, a store of the test's own, and attached models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from kvlingua.adapters import hf
from kvlingua.common.config import Config
from tests.adapters.hf.tiny import llama_config, sharpened

transformers_logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("model")
    sharpened(LlamaForCausalLM(llama_config())).save_pretrained(path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Chunks of 16 tokens in a store of the test's own."""
    return Config(
        url=f"file://{tmp_path / 'store'}",
        chunk_tokens=16,
        lookup_timeout_s=30,
        fingerprint_dir=tmp_path / "fingerprints",
        metrics_dir=tmp_path / "metrics",
    )


@pytest.fixture
def attached(folder: Path, config: Config) -> Iterator[Callable[..., Any]]:
    """`attached()` loads the saved model and attaches the test's store; options are the configuration's."""
    models: list[Any] = []

    def load(path: Path = folder, *, dtype: torch.dtype = torch.float32, model: Any = None, **options: Any) -> Any:
        if model is None:
            model = LlamaForCausalLM.from_pretrained(path, dtype=dtype).eval()
        models.append(hf.attach(model, config.model_copy(update=options)))
        return model

    yield load
    for model in models:
        hf.detach(model)
