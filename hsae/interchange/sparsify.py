"""sparsify's folder: cfg.json and sae.safetensors of a SparseCoder, which is a TopK autoencoder.

A ReLU autoencoder is written as one that keeps all of its latents. What else is to be said of it lies in hsae.json, as
sparsify warns of keys in cfg.json that are not its own.
"""

import json
from operator import index
from pathlib import Path

import safetensors.torch

from hsae.config import check
from hsae.files import write_json, write_tensors
from hsae.interchange.site import Site, about
from hsae.interchange.weights import assemble
from hsae.sae import SAE
from hsae.variants import TopKSAE

KINDS = ("relu", "topk")
IMPORT, LOAD = "from sparsify import SparseCoder", "SparseCoder.load_from_disk({folder!r})"


def write(sae: SAE, folder: Path, site: Site) -> None:
    """Write an autoencoder. Raises ValueError for a kind that sparsify does not have."""
    check("kind", sae.kind, f"one of {', '.join(KINDS)} for sparsify", sae.kind in KINDS)
    config = {
        "activation": "topk",
        "d_in": sae.d_in,
        "num_latents": sae.d_sae,
        "k": sae.k if isinstance(sae, TopKSAE) else sae.d_sae,
        "normalize_decoder": False,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
    }
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    write_tensors(folder / "sae.safetensors", tensors)
    write_json(folder / "cfg.json", config)
    write_json(folder / "hsae.json", about(sae, site))


def read(folder: Path, *, nonnegative: bool) -> SAE:
    """Read an autoencoder. Raises ValueError for groups of latents, skip connections and transcoders."""
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    tensors = safetensors.torch.load_file(folder / "sae.safetensors")
    # Configs of earlier versions lack what is not theirs.
    for name, only in {"activation": "topk", "skip_connection": False, "transcode": False}.items():
        check(name, config.get(name, only), str(only), config.get(name, only) == only)
    weights = {
        "W_enc": tensors["encoder.weight"].T,
        "W_dec": tensors["W_dec"],
        "b_enc": tensors["encoder.bias"],
        "b_dec": tensors["b_dec"],
    }
    k = index(config["k"])
    return assemble("relu" if k == len(weights["b_enc"]) else "topk", weights, k=k, nonnegative=nonnegative)
