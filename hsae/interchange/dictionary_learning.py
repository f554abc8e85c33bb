"""dictionary_learning's folder: config.json, what its trainer was, and ae.pt, the tensors.

ReLU autoencoders are written as its AutoEncoderNew: when its loader reads an AutoEncoder it scales the decoder's rows
to unit norm, and the latents with them. That class and JumpReluAutoEncoder do not subtract b_dec from their input,
the others do.
"""

import io
import json
import os
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsae.config import check
from hsae.files import write_json
from hsae.interchange.site import Site, about
from hsae.interchange.weights import assemble, bias_on_plain_input, thresholds
from hsae.sae import SAE
from hsae.variants import BatchTopKSAE, TopKSAE

CLASSES = {
    "relu": "AutoEncoderNew",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "BatchTopKSAE",
    "threshold": "JumpReluAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
}
KINDS = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
}
PLAIN_INPUT = ("AutoEncoderNew", "JumpReluAutoEncoder")
B_DEC = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}
IMPORT = "from dictionary_learning.utils import load_dictionary"
LOAD = "load_dictionary({folder!r}, device='cpu')[0]"


def write(sae: SAE, folder: Path, site: Site) -> None:
    """Write an autoencoder. Raises ValueError for a kind that dictionary_learning does not have."""
    check("kind", sae.kind, f"one of {', '.join(CLASSES)} for dictionary_learning", sae.kind in CLASSES)
    name = CLASSES[sae.kind]
    trainer: dict[str, Any] = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "device": "cpu",
        "layer": site.hook_layer,
        "lm_name": site.model_name,
        "submodule_name": site.hook_name,
    }
    b_enc = bias_on_plain_input(sae) if name in PLAIN_INPUT else sae.b_enc
    if name == "JumpReluAutoEncoder":
        tensors = {"W_enc": sae.W_enc, "b_enc": b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
        tensors["threshold"] = thresholds(sae)
    else:
        tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": b_enc, "decoder.weight": sae.W_dec.T}
        tensors[B_DEC.get(name, "b_dec")] = sae.b_dec
    if isinstance(sae, TopKSAE):
        trainer["k"] = sae.k
        # Negative: none. A TopK autoencoder of theirs may have one too, for evaluation at another sparsity.
        threshold = sae.threshold if isinstance(sae, BatchTopKSAE) else torch.tensor(-1.0)
        tensors |= {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": threshold}
    _write_tensors(folder / "ae.pt", tensors)
    write_json(folder / "config.json", {"trainer": trainer, "hsae": about(sae, site)})


def read(folder: Path, *, nonnegative: bool) -> SAE:
    """Read an autoencoder. Raises ValueError for a class that we do not have."""
    trainer = json.loads((folder / "config.json").read_text(encoding="utf-8"))["trainer"]
    # Theirs is a pickle; so read, it can hold nothing but tensors, and runs no code.
    tensors = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    name = trainer["dict_class"]
    check("dict_class", name, f"one of {', '.join(KINDS)}", name in KINDS)
    kind = KINDS[name]
    if kind == "jumprelu":
        weights = {own: tensors[own] for own in ("W_enc", "W_dec", "b_enc", "b_dec")}
    else:
        weights = {
            "W_enc": tensors["encoder.weight"].T,
            "W_dec": tensors["decoder.weight"].T,
            "b_enc": tensors["encoder.bias"],
            "b_dec": tensors[B_DEC.get(name, "b_dec")],
        }
    return assemble(
        kind,
        weights,
        plain_input=name in PLAIN_INPUT,
        k=index(trainer["k"]) if kind in ("topk", "batchtopk") else 1,
        threshold=tensors["threshold"] if kind in ("batchtopk", "jumprelu") else None,
        nonnegative=nonnegative,
    )


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    buffer = io.BytesIO()  # torch does not tell a full disk from a mistake
    torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
