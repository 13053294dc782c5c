"""The digest of a LoRA adapter: of what it computes, not of where it lies or how wide its numbers were saved."""

import hashlib
import json
import shutil
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvlingua.common.errors import KVLinguaError, UnsupportedError
from kvlingua.common.identity.lora import MARGIN_NS, AdapterDigests, Loaded, with_adapter
from kvlingua.common.identity.lora_folder import CONFIG, PREFIX, WEIGHTS, adapter_digest
from tests.common.samples import namespace

NAME = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}


def matrices(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (2, 6), "B": (4, 2)}
    return {
        NAME.format(layer, module, which): torch.randn(shapes[which], generator=generator).to(dtype)
        for layer in range(2)
        for module in "qv"
        for which in "AB"
    }


def saved(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(matrices() if tensors is None else tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(PLAIN | changes))
    return folder


def test_as_the_specification_says(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"kvlingua-lora-v1" + struct.pack("<d", 4.0))
    for name, tensor in sorted(matrices().items()):
        plain = name.removeprefix("base_model.model.").removesuffix(".weight")
        digest.update(plain.encode() + b"\0" + struct.pack("<QQ", *tensor.shape))
        digest.update(tensor.float().numpy().astype("<f4").tobytes())
    assert adapter_digest(saved(tmp_path / "a")) == digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_width_of_the_numbers_does_not_count(tmp_path: Path, dtype: torch.dtype) -> None:
    narrow = matrices(dtype=dtype)
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    assert adapter_digest(saved(tmp_path / "narrow", narrow)) == adapter_digest(saved(tmp_path / "wide", wide))


def test_where_it_lies_and_who_wrote_it_do_not_count(tmp_path: Path) -> None:
    first = saved(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    changed = saved(tmp_path / "c", peft_version="0.21", inference_mode=True, lora_dropout=0.1, use_dora=False)
    assert adapter_digest(first) == adapter_digest(tmp_path / "b") == adapter_digest(changed)


def one_bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME.format(1, "v", "B")].view(torch.int16)[0, 0] ^= 1


def swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, other = NAME.format(0, "q", "A"), NAME.format(0, "v", "A")
    tensors[one], tensors[other] = tensors[other], tensors[one]


def fewer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[NAME.format(0, "q", "A")], tensors[NAME.format(0, "q", "B")]


@pytest.mark.parametrize("change", [one_bit, swapped, fewer])
def test_another_matrix_is_another_adapter(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = matrices()
    change(tensors)
    assert adapter_digest(saved(tmp_path / "a")) != adapter_digest(saved(tmp_path / "b", tensors))


def test_another_strength_is_another_adapter(tmp_path: Path) -> None:
    assert adapter_digest(saved(tmp_path / "a")) != adapter_digest(saved(tmp_path / "b", lora_alpha=7))


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"layers_to_transform": [1]},
        {"init_lora_weights": "pissa"},
        {"something_new": 1},
        {"r": 0},
        {"r": 4},
        {"r": True},
        {"lora_alpha": "8"},
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": None},
    ],
    ids=str,
)
def test_what_is_not_plain_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        adapter_digest(saved(tmp_path / "a", **changes))
    assert caught.value.reason == "lora"


def test_a_pattern_of_modules(tmp_path: Path) -> None:
    pattern = saved(tmp_path / "a", target_modules=r".*\.(q|v)_proj")
    assert adapter_digest(pattern) == adapter_digest(saved(tmp_path / "b"))
    with pytest.raises(UnsupportedError, match="none of the target_modules"):
        adapter_digest(saved(tmp_path / "c", target_modules=r".*q_proj"))


def cut(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + b"\0"


def long_header(data: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + data[8:]


def moved(data: bytes) -> bytes:
    return data.replace(b"data_offsets", b"data_offsetz", 1)


def overlapping(data: bytes) -> bytes:
    return data.replace(b"[24,", b"[16,", 1)


def another_name(data: bytes) -> bytes:
    return data.replace(b"lora_A", b"lora_X", 1)


@pytest.mark.parametrize(
    "damage", [cut, longer, long_header, moved, overlapping, another_name, lambda data: b"", lambda data: data[:8]]
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = saved(tmp_path / "a")
    data = (folder / WEIGHTS).read_bytes()
    assert damage(data) != data
    (folder / WEIGHTS).write_bytes(damage(data))
    with pytest.raises(UnsupportedError) as caught:
        adapter_digest(folder)
    assert caught.value.reason == "lora"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "a")
    (folder / name).unlink()
    with pytest.raises(UnsupportedError, match=name):
        adapter_digest(folder)


def test_the_namespace_of_a_model_with_an_adapter() -> None:
    base = namespace()
    one, other = with_adapter(base, "ab" * 32), with_adapter(base, "cd" * 32)
    assert len({base.digest, one.digest, other.digest}) == 3
    assert one == with_adapter(base, "ab" * 32)
    assert one.differences(base) == [f"lora: {'ab' * 32} here, null there"]


def known(digests: AdapterDigests, folder: Path, loaded_ns: int) -> str | KVLinguaError:
    end = time.monotonic() + 60
    while (found := digests.get(str(folder), loaded_ns)) is None and time.monotonic() < end:
        time.sleep(0.01)
    assert found is not None
    return found


def test_a_folder_is_what_it_was_when_the_engine_loaded_it(tmp_path: Path) -> None:
    """Written after this process began, like any adapter that is loaded while an engine runs."""
    digests = AdapterDigests()
    folder = saved(tmp_path / "a")
    before, written = adapter_digest(folder), (folder / CONFIG).stat().st_ctime_ns
    loaded = written + 2 * MARGIN_NS
    for too_early in (written - 1, written + MARGIN_NS // 2):
        assert "changed after it was loaded, or right before" in str(known(digests, folder, too_early))
    assert known(digests, folder, loaded) == before
    while time.time_ns() < loaded + MARGIN_NS:
        time.sleep(0.05)
    saved(folder, lora_alpha=7)
    assert "changed after it was loaded" in str(known(digests, folder, loaded))
    again = (folder / CONFIG).stat().st_ctime_ns + 2 * MARGIN_NS
    assert known(digests, folder, again) == adapter_digest(folder) != before


def test_what_the_engine_asks_of_an_adapter_besides(tmp_path: Path) -> None:
    folder, loaded = saved(tmp_path / "a"), time.time_ns() + 2 * MARGIN_NS
    asked: list[tuple[Loaded, list[str]]] = []

    def fits(loaded: Loaded, matrices: Sequence[str]) -> None:
        asked.append((loaded, sorted(matrices)))
        raise UnsupportedError("lora", "not this one")

    assert str(known(AdapterDigests(fits), folder, loaded)) == "not this one"
    names = {name.removeprefix(PREFIX).removesuffix(".weight") for name in load_file(folder / WEIGHTS)}
    assert asked == [(Loaded(str(folder), loaded), sorted(names))]
