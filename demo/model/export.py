"""Writing the model as a folder that transformers, vLLM and SGLang read."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.model.vocabulary import WORD_IDS


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, weights (safetensors, in the model's dtype), tokenizer and generation config to `folder`."""
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    _tokenizer(model.config.max_position_embeddings).save_pretrained(folder)
    # transformers 5 writes theta into rope_parameters only; a reader that knows the older key would fall back to 10000.
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tokenizer(max_tokens: int) -> PreTrainedTokenizerFast:
    """One word, one token. Splits on white space only (write `mango .`) and adds no `<s>`."""
    words = Tokenizer(models.WordLevel(vocab=dict(WORD_IDS), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<doc>"],
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
