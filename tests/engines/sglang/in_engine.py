"""Runs a file with the Python that has SGLang, which is not pytest's, and gives back what it reports.

Such a file checks what needs SGLang's classes but no running engine; it prints one JSON object as its last line.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from engines.launch import environment, python_of
from tests.engines.sglang.conftest import RELEASE

HERE = Path(__file__).parent


def run(file: str, *arguments: str, release: str = RELEASE, **settings: str) -> dict[str, Any]:
    """The JSON that `file`, beside this one, prints, and its `stderr`. settings: further environment variables.
    release: another one's environment, `sglang==0.5.22`."""
    command = [str(python_of(release)), str(HERE / file), *arguments]
    variables = environment(release, {"OMP_NUM_THREADS": "1", **settings})
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(HERE.parents[2])])
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report | {"stderr": done.stderr}
