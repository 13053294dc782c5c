"""Stand-in for SGLang's kernel package, which is published for GPUs only, so that SGLang starts on a CPU.

SGLang imports names from it on a CPU too, but of all these functions a dense model calls one only. The others raise
when they are called.
"""

from collections.abc import Callable

from torch import Tensor

__version__ = "0.0.0+kvlingua"


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    row_length: int,
) -> None:
    """Write down the slots handed out to a batch: request i's go to its row, columns [start_offset[i], end_offset[i]).

    Shapes: req_pool_indices, start_offset, end_offset [requests]; req_to_token [rows, row_length]; out_cache_loc
    [slots], request by request.
    """
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        if not 0 <= start <= end <= row_length:
            raise IndexError(f"columns [{start}, {end}) of a row of {row_length}")
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*arguments: object, **options: object) -> None:
        raise RuntimeError(
            f"sgl_kernel.{name} needs SGLang's GPU kernels; this is a stand-in for machines without a GPU"
        )

    return missing
