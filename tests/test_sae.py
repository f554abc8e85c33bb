import pytest
import torch

from hsae.sae import SAE, first_below

D_IN, D_SAE = 5, 9


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1))


def randomised(model: SAE, seed: int = 2) -> SAE:
    """The model with weights as training leaves them: no tie, no zero bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.constrain()
    return model


def rows(n: int, d_in: int = D_IN, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def test_encoding_and_decoding_equal_naive_loops(x: torch.Tensor):
    model = randomised(SAE(D_IN, D_SAE))
    acts, x_hat, pre_acts = model(x)
    W_enc, W_dec, b_enc, b_dec = (p.tolist() for p in (model.W_enc, model.W_dec, model.b_enc, model.b_dec))
    for token, row in enumerate(x.tolist()):
        expected = [b_enc[j] + sum((row[i] - b_dec[i]) * W_enc[i][j] for i in range(D_IN)) for j in range(D_SAE)]
        expected_acts = [max(pre_act, 0.0) for pre_act in expected]
        expected_x_hat = [b_dec[i] + sum(expected_acts[j] * W_dec[j][i] for j in range(D_SAE)) for i in range(D_IN)]
        assert pre_acts[token].tolist() == pytest.approx(expected, abs=1e-5)
        assert acts[token].tolist() == pytest.approx(expected_acts, abs=1e-5)
        assert x_hat[token].tolist() == pytest.approx(expected_x_hat, abs=1e-5)


def test_as_a_dictionary_it_gives_its_activations_and_its_reconstruction(x: torch.Tensor):
    model = randomised(SAE(D_IN, D_SAE))
    out = model(x)
    codes, x_hat = model.reconstruct(x)
    assert torch.equal(codes, out.acts)
    assert torch.equal(x_hat, out.x_hat)


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


# The start from data


def test_initialisation_from_data_centres_its_first_rows_by_hand():
    model = SAE(2, 2)
    offsets = rows(30, 2)
    model.init_from_data(torch.cat([torch.tensor([[4.0, 2.0], [1.0, 6.0], [1.0, -2.0]]), 2 + offsets, 2 - offsets]))
    torch.testing.assert_close(model.b_dec.data, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(model.W_dec.data, torch.tensor([[1.0, 0.0], [-1 / 17**0.5, 4 / 17**0.5]]))
    encoder, decoder = model.W_enc / model.W_enc.norm(), model.W_dec.T / model.W_dec.norm()
    torch.testing.assert_close(encoder, decoder)


def test_after_initialisation_each_latent_is_active_on_the_rows_that_lie_farthest_in_its_direction():
    model, x = SAE(D_IN, D_SAE), rows(1000)
    model.init_from_data(x)
    projections = (x - x.mean(0)) @ model.W_dec.T
    for latent, active in enumerate((model.encode(x) > 0).T):
        assert active.sum().item() == pytest.approx(1000 * SAE.INITIAL_DENSITY, abs=1)
        assert projections[active, latent].min() > projections[~active, latent].max() - 1e-5


def test_initialisation_from_data_scales_the_encoder_to_the_best_reconstruction():
    model, x = SAE(D_IN, D_SAE), rows(1000)
    model.init_from_data(x)
    best = (model(x).x_hat - x).square().sum()
    assert best < (x - x.mean(0)).square().sum()
    for factor in (0.9, 1.1):
        other = SAE(D_IN, D_SAE)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.W_enc.mul_(factor)
            other.b_enc.mul_(factor)
        assert (other(x).x_hat - x).square().sum() > best


def test_initialisation_from_just_enough_tokens_leaves_everything_finite(x: torch.Tensor):
    for n in (D_SAE, 20):
        model = SAE(D_IN, D_SAE)
        model.init_from_data(x[:n])
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name


def test_initialisation_from_fewer_tokens_than_latents_is_refused(x: torch.Tensor):
    with pytest.raises(ValueError, match="initialising 21 latents from data needs as many tokens; there are 20"):
        SAE(D_IN, 21).init_from_data(x)


def test_the_first_below_is_exceeded_by_a_share_of_the_rows_and_by_one_at_least():
    responses = torch.stack([torch.arange(10.0), -torch.arange(10.0)], dim=1)[torch.randperm(10)]
    assert first_below(responses, 0.3).tolist() == [6, -3]
    assert first_below(responses, 0.01).tolist() == [8, -1]
    assert first_below(responses[:1], 0.3).tolist() == responses[0].tolist()


# Idle tokens


def test_idle_tokens_count_the_tokens_of_the_batches_since_a_latent_was_last_active():
    model = SAE(2, 3)
    model.W_enc.data.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    model(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert model.idle_tokens.tolist() == [0, 2, 2]
    model(torch.tensor([[0.0, 1.0]]))
    assert model.idle_tokens.tolist() == [1, 0, 3]
    model.eval()(torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))
    assert model.idle_tokens.tolist() == [1, 0, 3]
    model.train()(torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))
    assert model.idle_tokens.tolist() == [3, 2, 0]


# Revival

DEAD = [2, 5]


def dying(nonnegative: bool = False, d_in: int = D_IN, dead: list[int] = DEAD) -> SAE:
    """A model of which some latents have been silent for 1000 tokens, and the others for a few."""
    model = randomised(SAE(d_in, D_SAE, nonnegative=nonnegative))
    model.b_enc.data[dead] = -100.0
    model.idle_tokens.copy_(torch.arange(D_SAE))
    model.idle_tokens[dead] = 1000
    return model


def revive(model: SAE, x: torch.Tensor, dead_tokens: int = 1000, seed: int = 0) -> int:
    return model.revive(x, dead_tokens, torch.Generator().manual_seed(seed))


def errors(model: SAE, x: torch.Tensor) -> torch.Tensor:
    return x - model.decode(model.encode(x)).detach()


def test_below_dead_tokens_nothing_is_revived_and_no_random_number_drawn():
    model, generator = dying(), torch.Generator().manual_seed(0)
    before, random = state(model), generator.get_state()
    assert model.revive(rows(300), 1001, generator) == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(generator.get_state(), random)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_each_revived_latent_points_at_the_error_of_another_token(nonnegative: bool):
    model, x = dying(nonnegative, d_in=12), rows(300, d_in=12)
    error = errors(model, x)
    wanted = error.clamp(min=0) if nonnegative else error
    assert revive(model, x) == 2
    cosines = torch.cosine_similarity(model.W_dec[DEAD][:, None], wanted, dim=2)
    torch.testing.assert_close(cosines.max(1).values, torch.ones(2))
    assert cosines[0].argmax() != cosines[1].argmax()
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert bool((model.W_dec >= 0).all()) == nonnegative


def test_the_token_that_was_reconstructed_worst_is_answered_by_the_size_of_its_error():
    model, x = dying(dead=[4]), rows(300)
    x[7] = 1000 * x[7]
    error = errors(model, x)[7]
    assert revive(model, x) == 1
    torch.testing.assert_close(model.W_dec[4], error / error.norm())
    assert model.encode(x)[7, 4].item() == pytest.approx(error.norm().item(), rel=1e-3)


def test_tokens_without_error_give_no_direction():
    model = SAE(2, 4, nonnegative=True)
    model.W_dec.data.copy_(torch.tensor([[0.6, 0.8]]).repeat(4, 1))
    model.b_enc.data.fill_(-100.0)
    model.idle_tokens.fill_(1000)
    before = state(model)
    assert revive(model, torch.tensor([[0.0, 0.0], [-1.0, -2.0]]).repeat(50, 1)) == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    # One token of a hundred has a positive error: one latent can be revived.
    assert revive(model, torch.tensor([[0.0, 0.0], [-1.0, -2.0]] * 49 + [[3.0, -1.0], [0.0, -1.0]])) == 1
    assert model.W_dec[0].tolist() == [1, 0]
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(4))


def test_tokens_are_drawn_with_probability_proportional_to_their_squared_error():
    x = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(100, 1), torch.tensor([[0.0, 3.0]]).repeat(100, 1)])
    chosen = []
    for seed in range(300):
        model = SAE(2, 1)
        model.b_enc.data.fill_(-100.0)
        model.idle_tokens.fill_(1000)
        revive(model, x, seed=seed)
        chosen.append(model.W_dec[0].abs().argmax().item())
    assert sum(chosen) / 300 == pytest.approx(0.9, abs=0.05)


def test_a_revived_latent_answers_about_a_hundredth_of_the_batch():
    model, x = dying(), rows(2000)
    revive(model, x)
    for n_active in (model.encode(x)[:, DEAD] > 0).sum(0).tolist():
        assert n_active == pytest.approx(2000 * SAE.REVIVED_DENSITY, abs=1)


@pytest.mark.parametrize("n", [8, 32, 64, 128])
def test_in_a_batch_of_less_than_a_hundred_or_so_a_revived_latent_answers_a_token_as_well(n: int):
    for seed in range(10):
        model, x = dying(), rows(n, seed=seed)
        revive(model, x, seed=seed)
        assert (model.encode(x)[:, DEAD] > 0).any(0).all()


def test_only_the_revived_latents_counters_start_again():
    model = dying()
    revive(model, rows(300))
    assert model.idle_tokens.tolist() == [0, 1, 0, 3, 4, 0, 6, 7, 8]


@pytest.mark.parametrize("training", [True, False])
def test_revival_leaves_the_mode_as_it_is(training: bool):
    model = dying().train(training)
    assert revive(model, rows(300)) == 2
    assert model.training == training


def test_revival_repeats_to_the_bit_for_a_generators_seed_and_not_for_another():
    first, again, other = dying(), dying(), dying()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        revive(model, rows(300), seed=seed)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first.W_dec, other.W_dec)


def test_of_more_dead_latents_than_tokens_the_first_ones_are_revived():
    model = dying(dead=[1, 3, 4, 6, 8])
    before, x = state(model), rows(3)
    assert revive(model, x) == 3
    assert model.idle_tokens.tolist() == [0, 0, 2, 0, 0, 5, 1000, 7, 1000]
    for dead in (6, 8):
        assert torch.equal(model.W_enc[:, dead], before["W_enc"][:, dead])
        assert model.b_enc[dead] == -100
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_level_2_latent_that_was_never_active_becomes_active():
    model, h1 = dying(nonnegative=True, d_in=12), rows(1000, d_in=12).relu()
    assert not (model.encode(h1)[:, DEAD] > 0).any()
    assert revive(model, h1) == 2
    assert (model.encode(h1)[:, DEAD] > 0).any(0).all()
    assert (model.W_dec >= 0).all()


@pytest.mark.parametrize("x", [torch.ones(10, D_IN), torch.zeros(10, D_IN), rows(1)], ids=["ones", "zeros", "one row"])
def test_a_batch_whose_tokens_are_all_alike_leaves_everything_finite(x: torch.Tensor):
    model = dying()
    revive(model, x)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
