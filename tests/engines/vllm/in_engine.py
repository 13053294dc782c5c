"""Runs a file with the Python that has vLLM, which is not pytest's, and gives back what it reports.

Such a file checks what needs vLLM's classes but no running engine; it prints one JSON object as its last line.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from engines.drivers.driver import ROOT
from engines.launch import environment, python_of
from tests.engines.vllm.conftest import RELEASE

HERE = Path(__file__).parent


def run(file: str, *arguments: str) -> dict[str, Any]:
    """The JSON that `file`, beside this one, prints, and its `stderr`."""
    variables = environment(RELEASE, {"OMP_NUM_THREADS": "1"})
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(ROOT)])
    command = [str(python_of(RELEASE)), str(HERE / file), *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report | {"stderr": done.stderr}
