import math

import pytest
import torch

from hsae import flat, losses
from hsae.flat import FlatConfig
from hsae.streams import Stream
from hsae.variants import VARIANTS, TopKSAE

TOLD = [kind for kind, variant in VARIANTS.items() if issubclass(variant, TopKSAE)]
STEERED = [kind for kind in VARIANTS if kind not in TOLD]


@pytest.mark.parametrize(("target", "k"), [(3.4, 3), (3.6, 4), (0.2, 1), (99.0, 8)])
@pytest.mark.parametrize("variant", TOLD)
def test_the_topk_kinds_get_the_rounded_target_within_its_range(variant: str, target: float, k: int):
    model = flat.drawn(variant, 4, 8, target, 0.1, Stream(0, "test"))
    assert isinstance(model, TopKSAE)
    assert model.k == k


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_built_in_the_size_asked_for(variant: str):
    model = flat.drawn(variant, 4, 8, 2.0, 0.25, Stream(0, "test"))
    assert type(model) is VARIANTS[variant]
    assert (model.d_in, model.d_sae, model.nonnegative, model.beta.item()) == (4, 8, False, 0.25)


def test_an_unknown_variant_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ValueError, match=f"^`kind` must be one of {', '.join(VARIANTS)}; not 'relu_l1'.$"):
        flat.drawn("relu_l1", 4, 8, 2.0, 0.1, Stream(0, "test"))


def sparse_data(n: int) -> torch.Tensor:
    """Sums of a few of 24 random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 16, generator=generator)
    codes = torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.15)
    x = codes @ directions
    return x / x.std()


@pytest.mark.parametrize(("target", "initial_beta"), [(2.0, 0.01), (6.0, 0.1)])
@pytest.mark.parametrize("variant", STEERED)
def test_beta_is_steered_until_as_many_latents_are_active_as_the_target_says(
    variant: str, target: float, initial_beta: float
):
    torch.manual_seed(0)
    x = sparse_data(128)
    model = flat.drawn(variant, 16, 32, target, initial_beta, Stream(1, "test"))
    terms = flat.SteeredGradients(model, target)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    l0 = []
    for _ in range(1500):
        terms(x)
        optimizer.step()
        model.constrain()
        l0.append((model.encode(x) > 0).sum(1).float().mean().item())
    assert abs(l0[0] - target) > 0.5 * target
    assert sum(l0[-50:]) / 50 == pytest.approx(target, rel=0.2)


def test_the_first_batch_is_penalised_by_the_initial_coefficient_and_the_next_by_the_steered_one():
    torch.manual_seed(0)
    x, model = sparse_data(32), flat.drawn("relu", 16, 32, 5.0, 0.01, Stream(0, "test"))
    out = model(x)
    l0, penalty = (out.acts > 0).sum().item() / 32, losses.l1(out.acts).item()
    terms = flat.SteeredGradients(model, 5.0)
    first, second = terms(x), terms(x)
    assert first["x_from_h1"].item() == pytest.approx(losses.mse(out.x_hat, x).item())
    assert first["sparsity_h1"].item() == pytest.approx(0.01 * penalty)
    assert second["sparsity_h1"].item() == pytest.approx(0.01 * (l0 / 5) ** 0.01 * penalty)
    assert model.beta.item() == pytest.approx(0.01 * (l0 / 5) ** 0.01)
    assert l0 > 5


@pytest.mark.parametrize("variant", STEERED)
def test_a_silent_autoencoder_leaves_beta_positive_and_falling(variant: str):
    model = flat.drawn(variant, 16, 32, 5.0, 1.0, Stream(0, "test"))
    model.b_enc.data.fill_(-100.0)
    terms = flat.SteeredGradients(model, 5.0)
    terms(torch.ones(4, 16))
    terms(torch.ones(4, 16))
    assert model.beta.item() == pytest.approx((1e-3 / 5) ** 0.01)


@pytest.mark.parametrize("variant", ["threshold", "jumprelu"])
def test_a_threshold_is_not_steered_before_it_has_come_down(variant: str):
    model, x = flat.drawn(variant, 16, 32, 5.0, 0.01, Stream(0, "test")), sparse_data(32)
    terms = flat.SteeredGradients(model, 5.0)
    model.anneal(0.01)
    terms(x)
    terms(x)
    assert model.beta.item() == pytest.approx(0.01)
    model.anneal(0.0)
    terms(x)
    assert model.beta.item() != pytest.approx(0.01)


@pytest.mark.parametrize("variant", TOLD)
def test_the_topk_kinds_are_trained_on_the_reconstruction_alone(variant: str):
    torch.manual_seed(0)
    x, model = sparse_data(32), flat.drawn(variant, 16, 32, 4.0, 0.01, Stream(0, "test"))
    terms = flat.SteeredGradients(model, 4.0)(x)
    assert terms["sparsity_h1"].item() == 0
    assert terms["x_from_h1"].item() == pytest.approx(model.error(x, model(x)).item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_terms_of_every_variant_are_those_of_the_same_autoencoder_in_the_hsae(variant: str):
    torch.manual_seed(0)
    x, model = sparse_data(32), flat.drawn(variant, 16, 32, 4.0, 0.3, Stream(0, "test"))
    out = model(x)
    expected = {"x_from_h1": model.error(x, out).item(), "sparsity_h1": model.sparsity(out, 16).item()}
    assert {name: term.item() for name, term in flat.SteeredGradients(model, 4.0)(x).items()} == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_an_initial_coefficient_out_of_range_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match=f"`initial_beta` must be above 0; not {value}"):
        FlatConfig(value)
