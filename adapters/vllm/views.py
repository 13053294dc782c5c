"""From the tensors that vLLM registers to a described pool of blocks; or the reason why their bytes aren't known well
enough.

The shape of a registered tensor says too little: vLLM's CPU backend registers [block, head, token, K then V], while
its kernels keep K transposed within a block. So the layout is chosen by the kernel in use, and what the tensors claim
is checked against its row.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kvlingua.adapters.vllm.versions import kernel_of
from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.formats import format
from kvlingua.layouts.geometry import Extent, Geometry, Rope
from kvlingua.layouts.memory import Buffer
from kvlingua.layouts.view import Pool

# (attention backend, its kernel, order of the axes) -> a row of layouts/formats.py
LAYOUTS = {
    ("CPU_ATTN", "vec", "LBHNC"): "vllm_cpu_vec",
    ("CPU_ATTN", "vec16", "LBHNC"): "vllm_cpu_vec16",
}
SCALES = {"k_scale": "_k_scale_float", "v_scale": "_v_scale_float"}  # as attributes of an attention layer
MLA_BACKEND, MLA_LAYOUT = "CPU_MLA", "vllm_mla"


def layout_name(layers: Sequence[Any], order: str | None) -> str:
    """The row that describes what these attention layers keep. Raises UnsupportedError for any other combination."""
    kinds = {(layer.get_attn_backend().get_name(), kernel_of(layer), order) for layer in layers}
    if len(kinds) != 1:
        raise UnsupportedError(
            "layout", f"attention layers of several kinds ({sorted(map(str, kinds))}) aren't supported"
        )
    (kind,) = kinds
    if kind[0] == "AMX_MLA":  # what vLLM takes by itself on machines that have AMX
        raise UnsupportedError(
            "mla", f"{kind[0]} was never run with kvlingua: choose --attention-backend {MLA_BACKEND}"
        )
    if kind[0] == MLA_BACKEND:
        return MLA_LAYOUT  # one row per token; with one head, every order of the axes is the same
    if kind not in LAYOUTS:
        known = ", ".join("/".join(row) for row in LAYOUTS)
        raise UnsupportedError(
            "layout",
            f"how {'/'.join(map(str, kind))} packs a block isn't known, only {known}: try another dtype or block size",
        )
    return LAYOUTS[kind]


def pool_of(
    name: str,
    tensors: Sequence[Any],
    geometry: Geometry,
    extent: Extent | None = None,
    *,
    page: int,
    blocks: int,
    scales: Mapping[str, Sequence[Buffer]] | None = None,
) -> Pool:
    """The pool behind the registered tensors, one per layer in order, each [block, head, token, K and V] (of latent
    attention [block, 1, token, latent and rope]).

    extent: the heads and layers of the model that they hold, all by default. scales: of `static_scales`.
    Raises UnsupportedError where a tensor isn't what the layout's row says, LayoutError where its numbers don't fit
    its memory.
    """
    extent, geometry = geometry.full if extent is None else extent, held(geometry)
    width = sum(plane.width for plane in geometry.numbers)
    shape, dtype = (blocks, extent.heads, page, width), registered_dtype(geometry.dtype)
    first = tensors[0]
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise UnsupportedError("device", f"KV cache on {tensor.device.type} isn't supported yet, only cpu")
        if str(tensor.dtype) != f"torch.{dtype}" or tuple(tensor.shape) != shape:
            raise UnsupportedError(
                "layout",
                f"a registered tensor is {tuple(tensor.shape)} of {tensor.dtype}, expected {shape} of {dtype}",
            )
        if tensor.stride() != first.stride() or tensor.stride()[2:] != (width, 1):
            raise UnsupportedError(
                "layout",
                f"a registered tensor has strides {tensor.stride()}, which the layout doesn't have",
            )
    _check_apart(tensors)
    block, head = (stride * first.element_size() for stride in first.stride()[:2])
    buffers = [Buffer.of(tensor) for tensor in tensors]
    strides = {"block": block, "head": head}
    return format(name).pool(
        geometry, extent, page=page, blocks=blocks, buffers=buffers, strides=strides, scales=scales or {}
    )


def held(geometry: Geometry) -> Geometry:
    """With rotated dims in the order in which vLLM holds them: those of latent attention as pairs, whatever model."""
    planes = [
        replace(plane, rope=Rope("interleaved", plane.rope.width)) if plane.name == "rope" else plane
        for plane in geometry.planes
    ]
    return replace(geometry, planes=tuple(planes))


def registered_dtype(dtype: str) -> str:
    """What vLLM calls the KV's type in its tensors: numbers of fp8 are bytes to it."""
    return "uint8" if dtype.startswith("float8") else dtype


def static_scales(layers: Sequence[Any], geometry: Geometry) -> dict[str, list[Buffer]]:
    """The scales that the kernels multiply fp8 numbers with, one per layer and plane; empty where there are none.

    They are numbers of the layer's, set before the KV cache is allocated, and lie in no cache.
    """
    if geometry.scales_per is None:
        return {}
    return {
        plane: [Buffer.of(array("f", [getattr(layer, attribute)])) for layer in layers]
        for plane, attribute in SCALES.items()
    }


def ordered_layers(names: Sequence[str], tensors: Mapping[str, Any], layers: int) -> list[str]:
    """The layers' names by number, which must be 0 to `layers` - 1 and each have a tensor."""
    numbers = {name: [int(part) for part in name.split(".") if part.isdigit()] for name in names}
    order = sorted(names, key=lambda name: numbers[name])
    if [numbers[name] for name in order] != [[number] for number in range(layers)] or set(tensors) != set(names):
        raise UnsupportedError("layout", f"KV cache layers {sorted(tensors)} aren't numbered 0 to {layers - 1}")
    return order


def _check_apart(tensors: Sequence[Any]) -> None:
    """Layers that share memory (hybrid models) can't be told apart by block number."""
    spans = []
    for tensor in tensors:
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        spans.append((tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()))
    spans.sort()
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise UnsupportedError("layout", "layers that share memory aren't supported yet")
