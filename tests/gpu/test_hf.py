"""transformers on a GPU, end to end: what it stored there is loaded on the CPU, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layouts.kernel_sets import has_device

# A machine with a GPU may lack what the adapters need beside torch.
transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("kvlingua.adapters.hf")
config = pytest.importorskip("kvlingua.common.config")
tiny = pytest.importorskip("tests.adapters.hf.tiny")
supported = pytest.importorskip("kvlingua.common.supported").HF

pytestmark = [
    pytest.mark.skipif(not has_device(), reason="no GPU here, or no kernels for it"),
    pytest.mark.skipif(
        not supported.supports(transformers.__version__), reason=f"transformers {transformers.__version__}"
    ),
]
GPU = "cuda:0"
CHUNK, TOKENS = 16, 70


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def folder(tmp_path: Path, dtype: torch.dtype) -> Path:
    tiny.sharpened(transformers.LlamaForCausalLM(tiny.llama_config())).to(dtype).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def models(tmp_path: Path, folder: Path, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The same model on both devices, on one store."""
    chosen = config.Config(
        url=f"file://{tmp_path / 'store'}",
        chunk_tokens=CHUNK,
        lookup_timeout_s=30,
        fingerprint_dir=tmp_path / "fingerprints",
        metrics_dir=tmp_path / "metrics",
    )
    made = {}
    for device in ("cpu", GPU):
        made[device] = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        hf.attach(made[device], chosen)
    yield made
    for model in made.values():
        hf.detach(model)


@pytest.mark.parametrize(("writer", "reader"), [(GPU, "cpu"), ("cpu", GPU), (GPU, GPU)])
def test_one_stores_the_other_loads(models: dict[str, Any], dtype: torch.dtype, writer: str, reader: str) -> None:
    """The same tokens as without a store; but two devices round bf16 differently on the way to the KV."""
    ids = tiny.prompt(TOKENS)
    tiny.warm(models[writer], ids.to(writer))
    assert models[writer].kvlingua.last.reused == 0
    got = tiny.warm(models[reader], ids.to(reader))
    assert models[reader].kvlingua.last.reused == TOKENS // CHUNK * CHUNK
    if writer == reader or dtype == torch.float32:
        assert torch.equal(got, tiny.cold(models[reader], ids.to(reader)))


def test_spoiled_kv_gives_other_tokens(models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is loaded is what attention reads."""
    attachment = pytest.importorskip("kvlingua.adapters.hf.attachment")
    model, ids = models[GPU], tiny.prompt(TOKENS).to(GPU)
    tiny.warm(model, ids)
    right = attachment.empty_layers
    spoiled: list[torch.Tensor] = []

    def empty(*given: Any) -> Any:
        layers = right(*given)
        spoiled.extend(keys for keys, _ in layers)
        return layers

    load = model.kvlingua.cache.load

    def wrong(*given: Any, **options: Any) -> None:
        load(*given, **options)
        for keys in spoiled:
            keys.neg_()

    monkeypatch.setattr(attachment, "empty_layers", empty)
    monkeypatch.setattr(model.kvlingua.cache, "load", wrong)
    got = tiny.warm(model, ids)
    assert model.kvlingua.last.reused > 0
    assert not torch.equal(got, tiny.cold(model, ids))
