from pathlib import Path

import pytest
import torch

from hsae import flat, sae
from hsae.files import read_tensors, write_tensors
from hsae.sae import SAE, VARIANTS, TopKSAE

D_IN, D_SAE = 5, 9


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1))


def randomised(model: SAE) -> SAE:
    """The model with weights as training leaves them: no tie, no zero bias."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.constrain()
    return model


def test_encoding_and_decoding_equal_naive_loops(x: torch.Tensor):
    model = randomised(SAE(D_IN, D_SAE))
    acts, x_hat = model(x)
    W_enc, W_dec, b_enc, b_dec = (p.tolist() for p in (model.W_enc, model.W_dec, model.b_enc, model.b_dec))
    for token, row in enumerate(x.tolist()):
        expected_acts = []
        for j in range(D_SAE):
            pre_act = b_enc[j] + sum((row[i] - b_dec[i]) * W_enc[i][j] for i in range(D_IN))
            expected_acts.append(max(pre_act, 0.0))
        expected_x_hat = [b_dec[i] + sum(expected_acts[j] * W_dec[j][i] for j in range(D_SAE)) for i in range(D_IN)]
        assert acts[token].tolist() == pytest.approx(expected_acts, abs=1e-5)
        assert x_hat[token].tolist() == pytest.approx(expected_x_hat, abs=1e-5)


def test_a_new_autoencoder_has_unit_rows_and_a_tied_encoder():
    model = SAE(D_IN, D_SAE)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(model.W_enc, model.W_dec.T)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_constrain_gives_unit_rows_in_the_direction_that_they_had(nonnegative: bool):
    torch.manual_seed(0)
    model = SAE(D_IN, D_SAE, nonnegative=nonnegative)
    before = torch.randn(D_SAE, D_IN) * 7
    before[:, 0] = before[:, 0].abs()
    model.W_dec.data.copy_(before)
    model.constrain()
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(D_SAE))
    wanted = before.clamp(min=0) if nonnegative else before
    torch.testing.assert_close(torch.cosine_similarity(model.W_dec, wanted), torch.ones(D_SAE))
    assert bool((model.W_dec >= 0).all()) == nonnegative


def test_constrain_leaves_a_valid_decoder_alone():
    model = randomised(SAE(D_IN, D_SAE, nonnegative=True))
    before = model.W_dec.clone()
    model.constrain()
    torch.testing.assert_close(model.W_dec, before)


def test_a_decoder_row_without_any_positive_entry_stays_finite():
    model = SAE(D_IN, D_SAE, nonnegative=True)
    model.W_dec.data[3] = -1.0
    model.constrain()
    assert model.W_dec[3].tolist() == [0] * D_IN


def test_the_projected_gradient_is_orthogonal_to_the_rows_and_loses_nothing_else(x: torch.Tensor):
    model = randomised(SAE(D_IN, D_SAE))
    (model(x).x_hat - x).square().sum().backward()
    assert model.W_dec.grad is not None
    before = model.W_dec.grad.clone()
    model.project_gradient()
    torch.testing.assert_close((model.W_dec.grad * model.W_dec).sum(1), torch.zeros(D_SAE), atol=1e-4, rtol=0)
    removed = before - model.W_dec.grad
    along = (removed * model.W_dec).sum(1, keepdim=True)
    assert along.abs().max() > 1
    torch.testing.assert_close(removed, along * model.W_dec, atol=1e-4, rtol=0)


def test_projecting_without_a_gradient_is_no_error():
    model = SAE(D_IN, D_SAE)
    model.project_gradient()
    assert model.W_dec.grad is None


def test_initialisation_from_data_centres_its_first_rows_by_hand():
    model = SAE(2, 2)
    model.init_from_data(torch.tensor([[4.0, 2.0], [1.0, 6.0], [1.0, -2.0]]))
    assert model.b_dec.tolist() == [2, 2]
    torch.testing.assert_close(model.W_dec, torch.tensor([[1.0, 0.0], [-1 / 17**0.5, 4 / 17**0.5]]))
    encoder, decoder = model.W_enc / model.W_enc.norm(), model.W_dec.T / model.W_dec.norm()
    torch.testing.assert_close(encoder, decoder)


def test_initialisation_from_data_scales_the_encoder_to_the_best_reconstruction(x: torch.Tensor):
    model = SAE(D_IN, D_SAE)
    model.init_from_data(x)
    best = (model(x).x_hat - x).square().sum()
    for factor in (0.9, 1.1):
        other = SAE(D_IN, D_SAE)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.W_enc.mul_(factor)
        assert (other(x).x_hat - x).square().sum() > best


def test_initialisation_from_fewer_tokens_than_latents_is_refused(x: torch.Tensor):
    with pytest.raises(ValueError, match="initialising 21 latents from data needs as many tokens; there are 20"):
        SAE(D_IN, 21).init_from_data(x)


@pytest.mark.parametrize("k", [1, 3, D_SAE])
def test_topk_keeps_exactly_the_k_largest_positive_pre_activations(x: torch.Tensor, k: int):
    model = randomised(TopKSAE(D_IN, D_SAE, k=k))
    acts = model.encode(x)
    for row, pre_acts in zip(acts.tolist(), model.pre_acts(x).tolist(), strict=True):
        kept = sorted(range(D_SAE), key=lambda j, values=pre_acts: values[j], reverse=True)[:k]
        assert row == [max(value, 0.0) if j in kept else 0.0 for j, value in enumerate(pre_acts)]


def test_topk_with_all_latents_is_the_relu_autoencoder(x: torch.Tensor):
    topk, relu = randomised(TopKSAE(D_IN, D_SAE, k=D_SAE)), randomised(SAE(D_IN, D_SAE))
    assert torch.equal(topk(x).acts, relu(x).acts)
    assert torch.equal(topk(x).x_hat, relu(x).x_hat)


def test_topk_sends_gradients_to_the_latents_that_it_kept_and_to_no_other(x: torch.Tensor):
    model = randomised(TopKSAE(D_IN, D_SAE, k=1))
    acts = model.encode(x[:1])
    acts.sum().backward()
    assert model.b_enc.grad is not None
    assert torch.equal(model.b_enc.grad != 0, acts[0] > 0)


@pytest.mark.parametrize("k", [0, -1, D_SAE + 1])
def test_a_k_out_of_range_is_refused_with_what_is_allowed(k: int):
    with pytest.raises(ValueError, match=rf"`k` must be in 1..d_sae \(=9\); not {k}"):
        TopKSAE(D_IN, D_SAE, k=k)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_comes_back_from_its_file_as_it_was(variant: str, x: torch.Tensor, tmp_path: Path):
    model = randomised(flat.build(variant, D_IN, D_SAE, target_l0=3.0))
    write_tensors(tmp_path / "model.safetensors", model.state_dict(), model.header())
    loaded = sae.load(*read_tensors(tmp_path / "model.safetensors"))
    assert type(loaded) is VARIANTS[variant]
    assert loaded.header() == model.header()
    for expected, found in zip(model(x), loaded(x), strict=True):
        assert torch.equal(found, expected)
