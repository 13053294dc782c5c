"""How engines share a model among ranks: which kv heads and layers each of them holds, and which of them writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvlingua.common.errors import UnsupportedError
from kvlingua.layouts.geometry import Extent


def _middle_first(layers: int, stages: int) -> list[int]:
    """vLLM's rule: what is left over goes to the last stage but one, the one before it, and so on."""
    least, over = divmod(layers, stages)
    return [least + (stages - 1 - over <= stage < stages - 1) for stage in range(stages)]


def _last_first(layers: int, stages: int) -> list[int]:
    """SGLang's rule: what is left over goes to the last stages."""
    least, over = divmod(layers, stages)
    return [least + (stage >= stages - over) for stage in range(stages)]


STAGE_RULES: Mapping[str, Callable[[int, int], list[int]]] = {"vllm": _middle_first, "sglang": _last_first}
"""By engine: how many layers each of a number of pipeline stages holds."""


@dataclass(frozen=True, slots=True)
class Split:
    """A model of `kv_heads` on `tensor` ranks times one pipeline stage for each number of layers in `stages`.

    Tensor-parallel ranks divide the kv heads; where there are more ranks than heads, neighbouring ranks hold the same
    one. A latent (MLA) is one head, so that every rank holds it. Raises UnsupportedError for what no engine does.
    """

    kv_heads: int
    tensor: int
    stages: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.tensor < 1 or (self.kv_heads % self.tensor and self.tensor % self.kv_heads):
            raise UnsupportedError(
                "parallel",
                f"{self.kv_heads} kv heads can't be shared evenly by TP {self.tensor}: use a size that divides "
                f"{self.kv_heads}, or a multiple of it",
            )
        if not self.stages or min(self.stages) < 1:
            raise UnsupportedError(
                "parallel", f"{sum(self.stages)} layers can't be shared by {len(self.stages)} pipeline stages"
            )

    @classmethod
    def of(cls, kv_heads: int, layers: int, tensor: int = 1, pipeline: int = 1, rule: str = "vllm") -> "Split":
        """The split that an engine of `STAGE_RULES` makes when it isn't told which layers go where."""
        return cls(kv_heads, tensor, tuple(STAGE_RULES[rule](layers, pipeline)))

    def extent(self, tensor_rank: int, stage: int) -> Extent:
        """What a rank holds."""
        head = tensor_rank * self.kv_heads // self.tensor
        heads = max(1, self.kv_heads // self.tensor)
        layer = sum(self.stages[:stage])
        return Extent(head, head + heads, layer, layer + self.stages[stage])

    def writes(self, tensor_rank: int) -> bool:
        """Whether a rank writes what it holds: of those that hold the same, the lowest does."""
        return tensor_rank % max(1, self.tensor // self.kv_heads) == 0

    def extents(self) -> tuple[Extent, ...]:
        """What the ranks that write hold: every head of every layer once; heads slowest."""
        ranks = [rank for rank in range(self.tensor) if self.writes(rank)]
        return tuple(self.extent(rank, stage) for rank in ranks for stage in range(len(self.stages)))
