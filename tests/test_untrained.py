"""Autoencoders that have learned nothing have the sparsity that is asked of them, and their own random numbers."""

import pytest
import torch

from hsae import untrained, variants
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.streams import Stream
from tests.test_training import Rows

X = torch.randn(2048, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", variants.VARIANTS)
def test_an_untrained_autoencoder_has_the_l0_that_is_asked_for(kind: str):
    model = untrained.flat(kind, 64, 6.0, X, Stream(0, "test"))
    assert (model.encode(X) != 0).double().sum(1).mean().item() == pytest.approx(
        6, rel=0.2 if kind == "gated" else 0.01
    )
    assert not model.training
    # It is the start of training: the encoder is still the decoder's transpose.
    torch.testing.assert_close(model.W_enc, model.W_dec.T)


@pytest.mark.parametrize("start", Start)
@pytest.mark.parametrize("kind", [Activation.jumprelu, Activation.topk, Activation.relu])
def test_an_untrained_hsae_has_both_levels_as_sparse_as_asked(kind: Activation, start: Start):
    latents = LatentConfig(kind, k1=6, k2=3, dead_tokens=0, init_level2=start, init_tokens=1024)
    model = untrained.hierarchical((64, 24), (6.0, 3.0), Rows(X), 0.1, latents, Stream(0, "test"))
    x = X[:1024]
    assert (model.level1.encode(x) != 0).double().sum(1).mean().item() == pytest.approx(6, rel=0.05)
    # To a latent of level 2 most tokens are alike: they are all active, or none of them is.
    assert 1 < (model.encode_h2(x) != 0).double().sum(1).mean().item() < 3.15
    again = untrained.hierarchical((64, 24), (6.0, 3.0), Rows(X), 0.1, latents, Stream(0, "test"))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
