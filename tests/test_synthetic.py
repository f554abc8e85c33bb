import dataclasses
import math

import pytest
import torch
from scipy.stats import multivariate_normal

from hsae import losses, synthetic
from hsae.sae import SAE
from hsae.streams import Stream
from hsae.synthetic import Forest, SyntheticConfig, SyntheticData
from hsae.training import Autograd, Phase, Shuffled, fit
from tests.forest import CONFIG, ROOTS, N, seeded


def test_features_are_parents_then_their_children_then_singles():
    config = dataclasses.replace(CONFIG, parents=2, children=3, singles=1)
    assert config.features == 9
    assert synthetic.ground_truth(config, seeded()).parent_of.tolist() == [-1, -1, 0, 0, 0, 1, 1, 1, -1]


def test_directions_are_unit_vectors_and_no_two_are_the_same(forest: Forest):
    assert forest.features.shape == (24, 12)
    cosines = forest.features @ forest.features.T
    torch.testing.assert_close(cosines.diag(), torch.ones(24))
    assert cosines.fill_diagonal_(0).abs().max() < 0.95


def test_inputs_are_sums_of_directions_times_magnitudes(forest: Forest, data: SyntheticData):
    for acts, x in zip(data.acts[:20].tolist(), data.inputs[:20], strict=True):
        expected = torch.zeros(12)
        for act, direction in zip(acts, forest.features, strict=True):
            expected += act * direction
        torch.testing.assert_close(x, expected)


def test_a_child_fires_only_with_its_parent_and_never_with_a_sibling(forest: Forest, data: SyntheticData):
    fires = data.acts > 0
    for parent in range(5):
        children = fires[:, forest.parent_of == parent]
        assert children.shape[1] == 3
        assert not children[~fires[:, parent]].any()
        assert children.sum(1).max() == 1


def test_every_feature_fires_as_often_as_the_settings_say(data: SyntheticData):
    expected = torch.tensor([0.2] * 5 + [0.2 * 0.7 / 3] * 15 + [0.1] * 4)
    # Five standard errors of a binomial proportion.
    bounds = 5 * (expected * (1 - expected) / N).sqrt()
    rates = (data.acts > 0).float().mean(0)
    assert ((rates - expected).abs() < bounds).all()


def test_roots_fire_independently(data: SyntheticData):
    fires = (data.acts[:, ROOTS] > 0).float()
    p = torch.tensor([0.2] * 5 + [0.1] * 4)
    expected = p[:, None] * p
    bounds = 5 * (expected * (1 - expected) / N).sqrt()
    differences = (fires.T @ fires / N - expected).abs().fill_diagonal_(0)
    assert (differences < bounds).all()


def test_magnitudes_are_one_plus_the_absolute_value_of_a_normal(data: SyntheticData):
    magnitudes = data.acts[data.acts > 0]
    assert magnitudes.min() >= 1
    excess = (magnitudes - 1).double()
    assert excess.mean().item() == pytest.approx(0.3 * math.sqrt(2 / math.pi), rel=0.02)
    assert excess.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.02)


def test_the_true_l0_is_counted_and_is_what_the_probabilities_add_up_to(data: SyntheticData):
    counted = sum(sum(act != 0 for act in row) for row in data.acts[:50].tolist()) / 50
    assert SyntheticData(data.acts[:50], data.inputs[:50]).l0() == pytest.approx(counted)
    assert data.l0() == pytest.approx(5 * 0.2 * 1.7 + 4 * 0.1, rel=0.02)


def test_the_extremes_of_the_settings_by_hand():
    always = dataclasses.replace(CONFIG, d_in=2, parents=2, children=1, singles=1, magnitude_std=0.0)
    always = dataclasses.replace(always, p_parent=1.0, p_child=1.0, p_single=1.0)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [0.0, -1.0]])
    forest = Forest(always, features, torch.eye(3, 4), bias=torch.tensor([0.0, 2.0]))
    data = synthetic.sample(forest, 3, seeded())
    assert data.acts.tolist() == [[1.0] * 5] * 3
    torch.testing.assert_close(data.inputs, torch.tensor([[0.6, 2.8]] * 3))


def test_a_forest_may_have_no_singles():
    forest = synthetic.ground_truth(dataclasses.replace(CONFIG, singles=0), seeded())
    assert synthetic.sample(forest, 10, seeded()).acts.shape == (10, 20)


def test_ground_truth_and_samples_repeat_exactly_and_differ_for_another_seed(forest: Forest, data: SyntheticData):
    assert torch.equal(synthetic.ground_truth(CONFIG, seeded(1)).features, forest.features)
    assert not torch.equal(synthetic.ground_truth(CONFIG, seeded(2)).features, forest.features)
    again = synthetic.sample(forest, N, seeded(2))
    assert torch.equal(again.acts, data.acts)
    assert torch.equal(again.inputs, data.inputs)
    assert not torch.equal(synthetic.sample(forest, N, seeded(3)).acts, data.acts)


def test_one_generator_goes_on_from_sample_to_sample(forest: Forest):
    generator = seeded(4)
    train, test = (synthetic.sample(forest, 50, generator) for _ in range(2))
    assert not torch.equal(train.acts, test.acts)


def test_the_samples_can_be_read_in_slices_and_in_batches(data: SyntheticData):
    assert isinstance(data, Shuffled)
    assert len(data) == N
    assert torch.equal(data.x(slice(3, 7)), data.inputs[3:7])
    batches = list(data.batches(7000))
    assert [len(batch) for batch in batches] == [7000, 7000, 6000]
    assert torch.equal(torch.cat(batches), data.inputs)


def test_fit_trains_on_the_samples_as_they_are(data: SyntheticData):
    torch.manual_seed(0)
    model = SAE(12, 30)

    def objective(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x_from_h1": losses.mse(model.decode(model.encode(x)), x)}

    before = objective(data.inputs)["x_from_h1"].item()
    fit(
        "phase1",
        model,
        data,
        Autograd(model, objective),
        Phase(1, 500, 3e-3, 0.0, 0.0),
        Stream(0, "test"),
        dead_tokens=0,
    )
    assert objective(data.inputs)["x_from_h1"].item() < 0.5 * before


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("d_in", 0, "above 0"),
        ("parents", 0, "above 0"),
        ("children", -1, "above 0"),
        ("singles", -1, "0 or above"),
        ("p_parent", 0.0, "above 0 and at most 1"),
        ("p_child", 1.1, "above 0 and at most 1"),
        ("p_single", math.nan, "above 0 and at most 1"),
        ("zipf", -1.0, "finite and 0 or above"),
        ("correlation", 1.0, "0 or above and below 1"),
        ("correlation", -0.1, "0 or above and below 1"),
        ("noise_std", math.nan, "finite and 0 or above"),
        ("bias_norm", -1.0, "finite and 0 or above"),
        ("magnitude_std", -0.1, "finite and 0 or above"),
        ("magnitude_std", math.inf, "finite and 0 or above"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: float, allowed: str):
    with pytest.raises(ValueError, match=f"`{key}` must be {allowed}; not {value}"):
        dataclasses.replace(CONFIG, **{key: value})


# Skewed, correlated, shifted and noisy


def rates_of(config: SyntheticConfig) -> torch.Tensor:
    """How often each feature fires according to the settings."""
    parents, singles = config.p_roots.split([config.parents, config.singles])
    children = config.p_child * parents[:, None] * config.child_shares
    return torch.cat([parents, children.flatten(), singles])


def test_zipf_is_a_power_of_the_rank_with_the_probabilities_as_means():
    config = dataclasses.replace(CONFIG, parents=3, children=2, singles=2, p_parent=0.22, p_single=0.15, zipf=1.0)
    # 1, 1/2, 1/3 have the mean 11/18; 1 and 1/2 have 3/4.
    assert config.p_roots.tolist() == pytest.approx([0.36, 0.18, 0.12, 0.2, 0.1])
    assert config.child_shares.tolist() == pytest.approx([2 / 3, 1 / 3])
    squared = dataclasses.replace(config, zipf=2.0).p_roots
    assert (squared[:3] / squared[0]).tolist() == pytest.approx([1, 1 / 4, 1 / 9])


def test_probabilities_are_cut_at_a_half_but_a_mean_above_it_stays():
    config = dataclasses.replace(CONFIG, parents=3, singles=1, p_parent=0.44, p_single=0.9, zipf=1.0)
    assert config.p_roots.tolist() == pytest.approx([0.5, 0.36, 0.24, 0.9])
    assert dataclasses.replace(config, zipf=0.0).p_roots.tolist() == pytest.approx([0.44] * 3 + [0.9])


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_rates_are_those_of_the_settings_for_any_correlation(correlation: float):
    config = dataclasses.replace(CONFIG, zipf=1.0, correlation=correlation)
    data = synthetic.sample(synthetic.ground_truth(config, seeded(1)), N, seeded(2))
    expected = rates_of(config)
    bounds = 5 * (expected * (1 - expected) / N).sqrt()
    assert (((data.acts > 0).double().mean(0) - expected).abs() < bounds).all()


def test_roots_fire_together_as_often_as_a_bivariate_normal_says():
    config = dataclasses.replace(CONFIG, zipf=0.5, correlation=0.6)
    forest = synthetic.ground_truth(config, seeded(1))
    fires = (synthetic.sample(forest, N, seeded(2)).acts[:, ROOTS] > 0).double()
    found, p = fires.T @ fires / N, config.p_roots
    cosines = (forest.loadings @ forest.loadings.T).tolist()
    excess = []
    for i in range(9):
        for j in range(i):
            covariance = [[1, 0.6 * cosines[i][j]], [0.6 * cosines[i][j], 1]]
            expected = multivariate_normal.cdf(torch.special.ndtri(p[[i, j]]), cov=covariance)  # pyright: ignore[reportArgumentType]
            assert found[i, j].item() == pytest.approx(expected, abs=5 * (expected * (1 - expected) / N) ** 0.5)
            excess.append((expected / (p[i] * p[j])).item())
    assert min(excess) < 0.7
    assert max(excess) > 1.5


def test_children_are_exclusive_and_need_their_parent_under_correlation_too():
    config = dataclasses.replace(CONFIG, zipf=1.0, correlation=0.8)
    forest = synthetic.ground_truth(config, seeded(1))
    fires = synthetic.sample(forest, 2000, seeded(2)).acts > 0
    for parent in range(5):
        children = fires[:, forest.parent_of == parent]
        assert not children[~fires[:, parent]].any()
        assert children.sum(1).max() == 1


def test_the_bias_is_in_every_input_and_noise_on_every_coordinate():
    config = dataclasses.replace(CONFIG, bias_norm=3.0, noise_std=0.25)
    forest = synthetic.ground_truth(config, seeded(1))
    assert forest.bias.norm().item() == pytest.approx(3)
    data = synthetic.sample(forest, N, seeded(2))
    noise = (data.inputs - data.acts @ forest.features - forest.bias).double()
    assert noise.mean(0).abs().max() < 5 * 0.25 / N**0.5
    covariance = noise.T @ noise / N
    torch.testing.assert_close(covariance, 0.25**2 * torch.eye(12, dtype=torch.float64), rtol=0, atol=0.004)
    # The noise is no part of the truth, nor does it change it.
    clean = dataclasses.replace(forest, config=dataclasses.replace(config, noise_std=0.0))
    assert torch.equal(synthetic.sample(clean, N, seeded(2)).acts, data.acts)


def test_orthogonal_directions_are_orthonormal():
    features = synthetic.ground_truth(dataclasses.replace(CONFIG, d_in=24, orthogonal=True), seeded(1)).features
    torch.testing.assert_close(features @ features.T, torch.eye(24), rtol=0, atol=1e-5)


def test_more_orthogonal_features_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="`orthogonal` must be false for 24 features in 23 dimensions; not True"):
        dataclasses.replace(CONFIG, d_in=23, orthogonal=True)
