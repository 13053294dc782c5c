"""Without the native library: torch does it, and says once that it is slow. Without torch too: one clear error."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlingua.layouts import Buffer, Geometry, LayoutError, View, format, native
from kvlingua.layouts import convert as convert_views
from kvlingua.layouts.convert import _warn_slow

MODEL = Geometry.kv(1, 2, 4, "float16")


def views() -> tuple[View, View, bytearray]:
    memory = bytearray(4 * 2 * 8 * 2)
    source = [Buffer.of(bytearray(range(64))) for _ in range(2)]
    ours = format("hf").pool(MODEL, MODEL.full, page=4, blocks=1, buffers=source)
    theirs = format("vllm_lbhnc").pool(MODEL, MODEL.full, page=4, blocks=1, buffers=[Buffer.of(memory)])
    return ours.view([0], 0, 4), theirs.view([0], 0, 4), memory


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "absent.so")
    _warn_slow.cache_clear()
    yield
    _warn_slow.cache_clear()


def test_the_library_is_there_in_these_tests() -> None:
    assert native.available(), native.describe()
    assert f"ABI {native.ABI_VERSION}, kernels" in native.describe()


@pytest.mark.usefixtures("no_library")
def test_torch_takes_over_and_warns_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("kvlingua"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="kvlingua"):
        for _ in range(3):
            source, target, memory = views()
            convert_views(source, target)
            k = bytes(range(64))
            assert memory == b"".join(k[i : i + 8] * 2 for i in range(0, 64, 8))
    assert [record.name for record in caplog.records] == ["kvlingua"]
    assert "slow: no native library" in caplog.text


@pytest.mark.usefixtures("no_library")
def test_the_library_that_is_asked_for_by_name_must_exist() -> None:
    source, target, _ = views()
    with pytest.raises(LayoutError, match="no native library"):
        convert_views(source, target, backend="native")
    assert not native.available()


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"not an ELF file")
    monkeypatch.setattr(native, "library_path", lambda: wrong)
    assert not native.available()
    assert "doesn't load" in native.describe()


def test_a_library_of_another_abi(monkeypatch: pytest.MonkeyPatch) -> None:
    version = native.ABI_VERSION
    native.load.cache_clear()
    monkeypatch.setattr(native, "ABI_VERSION", version + 1)
    try:
        assert not native.available()
        assert f"ABI {version} instead of {version + 1}" in native.describe()
    finally:
        native.load.cache_clear()


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layouts_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kvlingua.layouts import Buffer, Geometry, convert, format\n"
        "m = Geometry.kv(1, 1, 4, 'float16'); a, b = bytearray(range(32)), bytearray(32)\n"
        "whole = lambda x: [Buffer.of(memoryview(x)[:16]), Buffer.of(memoryview(x)[16:])]\n"
        "view = lambda x: format('hf').pool(m, m.full, page=2, blocks=1, buffers=whole(x)).view([0], 0, 2)\n"
        "convert(view(a), view(b)); print(a == b)\n"
        "from kvlingua.layouts import native; from pathlib import Path\n"
        "native.library_path = lambda: Path('absent')\n"
        "try: convert(view(a), view(b))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    first, second = in_a_fresh_process(code).splitlines()
    assert first == "True"
    assert second.startswith("LayoutError there is neither the native library")
