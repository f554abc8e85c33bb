"""Reading of the language model, wherever it came from."""

import torch

from hsae import gpt, pretrained
from hsae.causal_lm import CausalLM
from hsae.files import read_tensors
from hsae.run import Stage
from hsae.streams import Stream


def read_transformer(stage: Stage, device: torch.device) -> CausalLM:
    """The language model, ready for inference."""
    tensors, header = read_tensors(stage.input("models/transformer.safetensors"))
    return (pretrained if "huggingface" in header else gpt).load(tensors, header).to(device)


def read_untrained(stage: Stage, device: torch.device, stream: Stream) -> CausalLM:
    """A model of its shape, randomly initialised."""
    _, header = read_tensors(stage.input("models/transformer.safetensors"))
    return (pretrained if "huggingface" in header else gpt).untrained(header, stream).to(device)
