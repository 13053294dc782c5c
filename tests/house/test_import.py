"""`import kvlingua` is light, and offers exactly its public names."""

import json
import subprocess
import sys

import pytest

import kvlingua

HEAVY = {"torch", "numpy", "transformers", "vllm", "sglang", "numba", "triton"}
PUBLIC = {"Config", "KVCache", "KVLinguaError", "__version__", "hf"}


def modules_after(code: str) -> set[str]:
    """The top-level modules a fresh Python has loaded after `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    # -P: the working folder is not on the path, so that the installed package is what is imported.
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import kvlingua",
        "import kvlingua; kvlingua.Config; kvlingua.KVCache; kvlingua.KVLinguaError",
        "import kvlingua.layouts, kvlingua.layouts.formats, kvlingua.layouts.convert",
        "import kvlingua.adapters.vllm.plugin, kvlingua.adapters.sglang.plugin",
        "import kvlingua.common.cli",
    ],
)
def test_loads_neither_torch_nor_an_engine(code: str) -> None:
    loaded = modules_after(code)
    assert "kvlingua" in loaded
    assert not loaded & HEAVY


def test_the_check_sees_what_is_loaded() -> None:
    assert modules_after("import torch") & HEAVY == {"torch", "numpy"}


def test_exported_names() -> None:
    assert set(kvlingua.__all__) == PUBLIC
    assert set(dir(kvlingua)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(kvlingua, name) is not None
    assert kvlingua.hf.attach
    assert issubclass(kvlingua.KVLinguaError, Exception)


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="no attribute 'KVcache'; public names: Config, KVCache"):
        kvlingua.KVcache  # noqa: B018
