"""What tests and the demo need to start an engine: its Python and its environment variables."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from engines.environment import FOREIGN, BuildError, Environment, default_root
from engines.recipe import Recipe, names
from engines.site import site

HF = "hf"  # transformers runs in the developer's own environment; there is nothing to build
# Settings of the caller's shell that would make two runs differ.
SETTINGS = ("KVLINGUA_", "VLLM_", "SGLANG_")


def engines() -> list[str]:
    """Every engine there is an adapter for, `hf` first."""
    return [HF, *sorted(names(), reverse=True)]


def available(engine: str) -> bool:
    """Whether `engine` can be started now, without building anything."""
    return engine == HF or _environment_of(engine).ready


def python_of(engine: str) -> Path:
    """The Python that has `engine`, in its default version or in another one (`vllm==0.31.0`).

    Raises:
        BuildError: its environment isn't built.
    """
    if engine == HF:
        return Path(sys.executable)
    environment = _environment_of(engine)
    if not environment.ready:
        command = f"`.venv/bin/python -m engines build {engine}`" if "==" in engine else "`make engines`"
        raise BuildError(f"the environment of {engine} isn't built ({environment.folder}): run {command}")
    return environment.python


def environment(engine: str, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """All environment variables for a process of `engine`.

    These are the caller's, less settings of kvlingua and of engines, plus the recipe's, then `overrides`.
    PYTHONPATH is this clone as it is now (see `engines.site`), which is installed first if need be.
    """
    variables = {k: v for k, v in os.environ.items() if k not in FOREIGN and not k.startswith(SETTINGS)}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(site())}
    # With a thread per core, engines that run beside each other wait for one another at every barrier.
    variables |= {"OMP_NUM_THREADS": "1"}
    if engine != HF:
        variables |= _environment_of(engine).recipe.environment
    return variables | dict(overrides or {})


def _environment_of(engine: str) -> Environment:
    return Environment(Recipe.named(engine), default_root())
