"""The models of the matrix, by family: small ones, whose answers depend on all of their KV."""

from pathlib import Path

from demo.job import MODEL

VOCABULARY = 512  # of the demo's documents


def model_of(family: str, work: Path) -> Path:
    """The folder of a family's model: the demo's, or one with random weights, which is made in `work`."""
    if family == "llama":
        return MODEL
    folder = work / family
    if not folder.exists():
        _make(family, folder)
    return folder


def _make(family: str, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # or the answers would hardly depend on what was read
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if family != "qwen3":
        raise ValueError(f"no model of the family {family!r}; there are llama and qwen3")
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape)).save_pretrained(folder)
