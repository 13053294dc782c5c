"""The tensors of a DynamicCache as kvlingua sees them: layout "hf", one pool for each row of the batch."""

from collections.abc import Sequence

import torch

from kvlingua.common.errors import LayoutError
from kvlingua.common.identity.namespace import Namespace
from kvlingua.layouts.formats import format
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool

LAYOUT = "hf"

Layer = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each `[row, kv head, column, dim]`."""


def empty_layers(namespace: Namespace, rows: int, columns: int) -> list[Layer]:
    """Zeroed keys and values for all layers of `namespace`: what stands before a row's padding ends stays zero."""
    dtype: torch.dtype = getattr(torch, namespace.kv_dtype)
    k, v = ((rows, namespace.kv_heads, columns, plane.width) for plane in namespace.geometry.planes)
    return [(torch.zeros(k, dtype=dtype), torch.zeros(v, dtype=dtype)) for _ in range(namespace.layers)]


def row_pool(namespace: Namespace, layers: Sequence[Layer], row: int) -> Pool:
    """Row `row` of a batch as a pool of one block that holds all columns; token p of the view is column p.

    layers: for each layer of the model keys and values `[row, kv head, column, dim]`, in any strides that all layers
    share. Raises LayoutError if the tensors are not what `namespace` says.
    """
    if len(layers) != namespace.layers:
        raise LayoutError(f"the cache holds {len(layers)} layers, the model has {namespace.layers}")
    geometry = namespace.geometry
    columns = layers[0][0].shape[2] if layers[0][0].dim() == 4 else 0
    strides: dict[str, int] = {}
    buffers: list[Buffer] = []
    for number, tensors in enumerate(layers):
        for plane, tensor in zip(geometry.planes, tensors, strict=True):
            expected = (namespace.kv_heads, columns, plane.width)
            dtype = str(tensor.dtype).removeprefix("torch.")
            if tensor.dim() != 4 or tuple(tensor.shape[1:]) != expected or dtype != plane.dtype:
                raise LayoutError(
                    f"layer {number} holds {plane.name} as {tuple(tensor.shape)} {dtype}, expected rows of {expected} "
                    f"{plane.dtype}"
                )
            view = tensor.detach()[row]
            for axis, stride in zip(("head", "token", "dim"), view.stride(), strict=True):
                nbytes = stride * view.element_size()
                if strides.setdefault(f"{plane.name}.{axis}", nbytes) != nbytes:
                    raise LayoutError(f"layer {number} holds {plane.name} with other strides than layer 0")
            buffers.append(Buffer.of(view))
    return format(LAYOUT).pool(geometry, geometry.full, page=columns, blocks=1, buffers=buffers, strides=strides)
