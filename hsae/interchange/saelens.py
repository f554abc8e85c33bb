"""SAELens's folder, of version 6: cfg.json and sae_weights.safetensors.

Its maths: h = (x - b_dec) W_enc + b_enc, acts = relu(h) (standard), its k largest (topk), or relu(h) where h >
threshold (jumprelu), x_hat = acts W_dec + b_dec. BatchTopK and its relatives are JumpReLU in evaluation mode, and so
SAELens saves its own.
"""

import json
from operator import index
from pathlib import Path

import safetensors.torch
from torch import Tensor

from hsae.config import check
from hsae.files import write_json, write_tensors
from hsae.interchange.site import Site, about
from hsae.interchange.weights import assemble, thresholds
from hsae.sae import SAE
from hsae.variants import TopKSAE

ARCHITECTURES = {
    "relu": "standard",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "threshold": "jumprelu",
    "jumprelu": "jumprelu",
}
KINDS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
IMPORT, LOAD = "from sae_lens import SAE", "SAE.load_from_disk({folder!r})"
FORMAT_VERSION = "6.0.0"  # of the config's layout; without it SAELens takes the config for an older one
WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")


def write(sae: SAE, folder: Path, site: Site) -> None:
    """Write an autoencoder. Raises ValueError for a kind that SAELens does not have."""
    check("kind", sae.kind, f"one of {', '.join(ARCHITECTURES)} for saelens", sae.kind in ARCHITECTURES)
    architecture = ARCHITECTURES[sae.kind]
    tensors: dict[str, Tensor] = {name: sae.get_parameter(name) for name in WEIGHTS}
    config = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if isinstance(sae, TopKSAE) and architecture == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = thresholds(sae)
    metadata = {
        **about(sae, site),
        "hook_head_index": None,
        "seqpos_slice": [1, None] if site.prepend_bos else [None],
        "model_from_pretrained_kwargs": {},
        "sae_lens_version": FORMAT_VERSION,
        "sae_lens_training_version": None,
    }
    write_tensors(folder / "sae_weights.safetensors", tensors)
    write_json(folder / "cfg.json", {**config, "metadata": metadata})


def read(folder: Path, *, nonnegative: bool) -> SAE:
    """Read an autoencoder.

    Raises ValueError for an architecture that we do not have, or normalisation at run time, which is not in the
    weights.
    """
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    tensors = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    architecture = config["architecture"]
    check("architecture", architecture, f"one of {', '.join(KINDS)}", architecture in KINDS)
    for name in ("normalize_activations", "reshape_activations"):
        check(name, config[name], "none", config[name] == "none")
    weights = {name: tensors[name] for name in WEIGHTS}
    if config.get("rescale_acts_by_decoder_norm"):
        # Its latents are chosen, and given, in units of their decoder rows' norms.
        norms = weights["W_dec"].norm(dim=1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    return assemble(
        KINDS[architecture],
        weights,
        plain_input=not config["apply_b_dec_to_input"],
        k=index(config["k"]) if architecture == "topk" else 1,
        threshold=tensors["threshold"] if architecture == "jumprelu" else None,
        nonnegative=nonnegative,
    )
