"""Functions that a test has vLLM's worker run, given to `collective_rpc` by name; the first argument is the worker."""

from typing import Any


def break_layer(worker: Any, layer: int) -> None:
    """That layer raises, as for want of memory, until `mend_layers`."""

    def forward(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't allocate memory")

    worker.model_runner.model.model.layers[layer].forward = forward


def mend_layers(worker: Any) -> None:
    for layer in worker.model_runner.model.model.layers:
        vars(layer).pop("forward", None)


def write_weight(worker: Any, scale: float) -> None:
    """Change one weight, of which all KV depends, in a way that neither vLLM nor torch's counters see."""
    worker.model_runner.model.model.layers[0].input_layernorm.weight.data.mul_(scale)
