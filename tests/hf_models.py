"""Tiny random models and tokenizers in Hugging Face's format, saved in a folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. “Good” citizens!\n\n" * 40

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "tie_word_embeddings": True,
    },
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2},  # adds positions to what it is given as embeddings
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
    "gemma": {  # scales what it is given as embeddings
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    },
}  # fmt: skip
"""Architectures that treat their embeddings differently, by their names in transformers."""


def save_tokenizer(folder: Path, vocab_size: int = 400) -> None:
    """A byte-level BPE tokenizer, as GPT-2 and Llama 3 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)


def save_model(folder: Path, kind: str = "llama", vocab_size: int = 400, **changes: Any) -> PreTrainedModel:
    """A random model whose tokens all matter; also returned."""
    torch.manual_seed(0)
    shape = {"vocab_size": vocab_size, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **shape, **SHAPES[kind], **changes)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return model
