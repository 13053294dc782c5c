"""Where a model may lie: the CPU, or one GPU that computes as exactly as its dtype says."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from kvlingua.adapters.hf.live_state import check_known_code, check_runs_as_described
from kvlingua.common.errors import UnsupportedError
from tests.adapters.hf.tiny import llama_config


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(llama_config()).eval()


def test_the_cpu(model: LlamaForCausalLM) -> None:
    check_known_code(model)
    check_runs_as_described(model)


def test_several_devices(model: LlamaForCausalLM) -> None:
    model.model.layers[1].to("meta")
    with pytest.raises(UnsupportedError, match=r"layers\.1\.\S+ lies on meta: the CPU, or one GPU, must hold all"):
        check_known_code(model)


def test_another_kind_of_device(model: LlamaForCausalLM) -> None:
    with pytest.raises(UnsupportedError, match="lies on meta"):
        check_known_code(model.to("meta"))


@pytest.fixture
def tf32() -> Iterator[None]:
    """torch's own switch, which isn't an attribute that monkeypatch could restore."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one switch only")
@pytest.mark.parametrize("where", [torch.backends, torch.backends.cuda.matmul], ids=["torch.backends", "matmul"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_newer_switch(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, where: Any, dtype: torch.dtype
) -> None:
    """With which the older one can't be read any more. Models of bfloat16 compute some of it in float32, too."""
    model.to(dtype)
    monkeypatch.setattr(LlamaForCausalLM, "device", SimpleNamespace(type="cuda"))
    before = where.fp32_precision
    where.fp32_precision = "tf32"
    try:
        with pytest.raises(UnsupportedError, match="TF32"):
            check_runs_as_described(model)
        where.fp32_precision = "ieee"
        check_runs_as_described(model)
    finally:
        where.fp32_precision = before
    check_runs_as_described(model)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no such switch for CPUs")
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_fewer_bits_on_a_cpu(model: LlamaForCausalLM, precision: str) -> None:
    """Whether this very CPU would do it or not: the switch counts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(UnsupportedError, match="highest"):
            check_runs_as_described(model)
    finally:
        torch.set_float32_matmul_precision(before)
    check_runs_as_described(model)


@pytest.mark.usefixtures("tf32")
def test_tf32_matters_on_a_gpu_only(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    check_runs_as_described(model)
    monkeypatch.setattr(LlamaForCausalLM, "device", SimpleNamespace(type="cuda"))
    with pytest.raises(UnsupportedError, match="TF32"):
        check_runs_as_described(model)
    torch.backends.cuda.matmul.allow_tf32 = False
    check_runs_as_described(model)
