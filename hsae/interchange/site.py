"""Where an autoencoder's input is read, and what else a format's config says about it."""

from importlib.metadata import version
from typing import Any, NamedTuple

from hsae.activations import Store
from hsae.causal_lm import ModelConfig, Source
from hsae.sae import SAE

OURS = "hsae-char-transformer"


class Site(NamedTuple):
    """A place in the language model, in TransformerLens's names; `prepend_bos`: contexts begin with its first token.

    Of that first token, an attention sink, and of the line break behind it (pretrained.convert), no autoencoder has
    seen the activation.
    """

    model_name: str
    hook_name: str
    hook_layer: int
    context_size: int
    prepend_bos: bool

    @classmethod
    def of(cls, store: Store, model: ModelConfig) -> "Site":
        """The residual stream of `model` that a store's activations come from."""
        pretrained = model.source == Source.hf
        name = str(model.name) if pretrained else OURS
        return cls(name, f"blocks.{store.layer}.hook_resid_post", store.layer, store.context, pretrained)

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
