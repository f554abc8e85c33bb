"""Where an autoencoder's input is read, and what else a format's config says about it."""

from importlib.metadata import version
from typing import Any, NamedTuple

from hsae.activations import Store
from hsae.sae import SAE

MODEL_NAME = "hsae-char-transformer"


class Site(NamedTuple):
    """A place in the transformer, in TransformerLens's names."""

    model_name: str
    hook_name: str
    hook_layer: int
    context_size: int

    @classmethod
    def of(cls, store: Store) -> "Site":
        """The residual stream that a store's activations come from."""
        return cls(MODEL_NAME, f"blocks.{store.layer}.hook_resid_post", store.layer, store.context)

    @property
    def latents(self) -> "Site":
        """The latents of an autoencoder at this place, under SAELens's name for them.

        A HookedSAETransformer caches them by it, but its `add_sae` of a second autoencoder there has no effect.
        """
        return self._replace(hook_name=f"{self.hook_name}.hook_sae_acts_post")


def about(sae: SAE, site: Site) -> dict[str, Any]:
    """The site, the version that wrote it, the kind under our name, and the decoder rows' norm (their median)."""
    norm = sae.W_dec.norm(dim=1).median().item()
    return {**site._asdict(), "hsae_version": version("hsae"), "hsae_kind": sae.kind, "hsae_decoder_norm": norm}
