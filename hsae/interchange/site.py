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
        """The latents of an autoencoder at this place, by the name under which SAELens's HookedSAETransformer caches them.

        It caches them there, but cannot splice a second autoencoder in: its `add_sae` would have no effect.
        """
        return self._replace(hook_name=f"{self.hook_name}.hook_sae_acts_post")


def about(sae: SAE, site: Site) -> dict[str, Any]:
    """The site, the kind under our name, and the version that wrote it."""
    return {**site._asdict(), "hsae_kind": sae.kind, "hsae_version": version("hsae")}
