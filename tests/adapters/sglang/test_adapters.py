"""Which LoRA adapters SGLang computes with as their files say."""

import os
import time
from pathlib import Path

import pytest

from kvlingua.adapters.sglang.adapters import check_alone, check_used
from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity.lora_folder import CONFIG, WEIGHTS

LAYER = "model.layers.0"
OWN = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
WRAPPED = {f"{LAYER}.{name}" for name in OWN}
Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def check(*modules: str) -> None:
    check_used({f"{LAYER}.{module}" for module in modules}, WRAPPED)


def test_what_sglang_uses() -> None:
    check(Q, V)
    check(Q, K, V, O, GATE, UP, DOWN)
    check(GATE)
    check(O)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([V], f"matrices of {LAYER}.{V} beside those of q_proj only"),
        ([Q], "beside those of v_proj only"),
        ([Q, K], "beside those of v_proj only"),
        ([K, V], "beside those of q_proj only"),
        ([UP], "beside those of gate_proj only"),
        ([Q, V, "self_attn.qkv_proj"], "computes model.layers.0.self_attn.qkv_proj without"),
        (["mlp.gate"], "without the adapter's matrices"),
        (["mlp.experts.0.down_proj"], "without the adapter's matrices"),
    ],
)
def test_what_it_leaves_out(modules: list[str], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        check(*modules)


@pytest.mark.parametrize("module", [f"model.layers.1.{O}", "lm_head", "down_proj"])
def test_modules_that_the_engine_has_not_wrapped(module: str) -> None:
    with pytest.raises(UnsupportedError, match=f"computes {module} without"):
        check_used({module}, WRAPPED)


def test_other_files_of_a_folder(tmp_path: Path) -> None:
    for name in (CONFIG, WEIGHTS, "README.md", "optimizer.pt"):
        (tmp_path / name).touch()
    now = time.time_ns()
    os.utime(tmp_path, ns=(now, now))
    check_alone(tmp_path, now)
    with pytest.raises(UnsupportedError, match="after SGLang may have read it"):
        check_alone(tmp_path, now - 1)
    with pytest.raises(UnsupportedError, match="after SGLang may have read it"):
        check_alone(tmp_path, None)
    with pytest.raises(UnsupportedError, match="can't be read: No such file"):
        check_alone(tmp_path / "gone", now)
    for name in ("more.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).touch()
        with pytest.raises(UnsupportedError, match=f"SGLang reads {name}"):
            check_alone(tmp_path, 2 * now)
        (tmp_path / name).unlink()
