"""The engines' own rule for the layers of a pipeline stage is the one that kvlingua has written down."""

import json
import subprocess

import pytest

from engines.launch import environment, python_of
from kvlingua.common.identity.ranks import STAGE_RULES

pytestmark = pytest.mark.engine

PROGRAM = """
import json
from {module} import get_pp_indices
print(json.dumps([[layers, stages, [get_pp_indices(layers, stage, stages) for stage in range(stages)]]
                  for layers in range(1, 100) for stages in range(1, min(layers, 12) + 1)]))
"""
MODULES = {"vllm": "vllm.distributed.utils", "sglang": "sglang.srt.distributed.utils"}


@pytest.mark.parametrize("engine", MODULES)
def test_layers_of_pipeline_stages(engine: str) -> None:
    variables = environment(engine, {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"})
    command = [str(python_of(engine)), "-c", PROGRAM.format(module=MODULES[engine])]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    cases = json.loads(done.stdout.splitlines()[-1])
    assert len(cases) > 1000
    for layers, stages, theirs in cases:
        sizes = STAGE_RULES[engine](layers, stages)
        ours = [[sum(sizes[:stage]), sum(sizes[: stage + 1])] for stage in range(stages)]
        assert ours == theirs, (layers, stages)
