import dataclasses

import pytest
import torch

from hsae import ground_truth, ground_truth_plots, posthoc, synthetic, variants
from hsae.activations import Normalizer
from hsae.clustering import ClusteringConfig
from hsae.clusters import Clusters, Dictionary, Mixture, NonnegativeParts, PrincipalComponents
from hsae.dictionary import Activation, LatentConfig, Start
from hsae.ground_truth import GroundTruthConfig, Samples, Truth
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.sharpening import Sharpening
from hsae.synthetic import SyntheticConfig
from hsae.training import Phase
from hsae.workers import workers

PHASE = Phase(epochs=1, batch_size=128, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.1)
CONFIG = GroundTruthConfig(
    data=SyntheticConfig(
        d_in=16, parents=3, children=2, singles=2, p_parent=0.2, p_child=0.6, p_single=0.15, zipf=0.0, correlation=0.0,
        magnitude_std=0.2, noise_std=0.0, bias_norm=0.0, orthogonal=True,
    ),
    train_samples=2048, test_samples=1024, d_sae1=14, d_sae2=5,
    coefficients=Coefficients(
        beta1=0.05, beta2=0.2, lambda_cos=0.0, gamma_group=0.0, weight_coverage=0.0, weight_x_from_h1=1.0,
        weight_h1_from_h2=1.0, weight_x_from_h2=1.0, level1_grad_scale=0.1,
    ),
    latents=LatentConfig(Activation.jumprelu, k1=2, k2=1, dead_tokens=0, init_level2=Start.families, init_tokens=1024),
    phase1=PHASE, sharpening=Sharpening(**vars(PHASE), price=2.0), phase2=PHASE, phase3=PHASE,
    clustering=ClusteringConfig(fit_tokens=2048, max_iter=5),
    rivals=["topk", "kmeans", "minibatch_kmeans", "ward", "gmm", "pca", "nmf"],
)  # fmt: skip


@pytest.fixture(scope="module")
def truth() -> Truth:
    """A forest whose features are the first axes, and samples that are not normalised."""
    forest = synthetic.ground_truth(CONFIG.data, torch.Generator().manual_seed(0))
    forest = dataclasses.replace(forest, features=torch.eye(11, 16))
    data = synthetic.sample(forest, 4000, torch.Generator().manual_seed(1))
    samples = Samples(data, Normalizer(torch.zeros(16), torch.tensor(1.0)))
    return Truth(forest, samples, forest.parent_of)


def perfect_level1() -> ground_truth.SAE:
    """An autoencoder whose latents are the features."""
    model = variants.build("relu", 16, 11, k=1, beta=0.1)
    with torch.no_grad():
        model.W_dec.copy_(torch.eye(11, 16))
        model.tie()
    return model.eval()


def perfect(parents: torch.Tensor) -> HierarchicalSAE:
    """An HSAE whose level-2 latents read and write the given sets of features."""
    level2 = variants.build("relu", 11, len(parents), k=1, beta=0.1, nonnegative=True)
    with torch.no_grad():
        level2.W_dec.copy_(parents)
        level2.tie()
        level2.W_enc.copy_(parents.T)
    return HierarchicalSAE(perfect_level1(), level2).eval()


def families() -> torch.Tensor:
    """Rows: the three parents with their children, the two singles."""
    rows = torch.zeros(5, 11)
    rows[torch.arange(3), torch.arange(3)] = 1
    for child in range(6):
        rows[child // 2, 3 + child] = 1
    rows[[3, 4], [9, 10]] = 1
    return rows


def test_the_true_hierarchy_has_perfect_scores(truth: Truth):
    scores = ground_truth.score_hsae(perfect(families()), truth)
    for name in ("mcc", "feature_f1", "matched_f1", "parent_f1", "root_f1", "edge_ap", "edge_f1", "uniqueness"):
        assert scores[name] == pytest.approx(1), name
    assert scores["edge_ap_decoder"] == scores["ancestor_precision"] == scores["ancestor_recall"] == 1
    assert scores["absorption"] == scores["absorption_level2"] == scores["dead_fraction"] == 0
    assert scores["explained_variance"] == pytest.approx(1)
    assert scores["l0"] == pytest.approx(truth.test.data.l0())


def test_level_2_latents_that_are_silent_with_children_are_found_out(truth: Truth):
    alone = families()
    alone[:3, 3:9] *= -2  # a parent is outvoted by its child
    model = perfect(families())
    with torch.no_grad():
        model.level2.W_enc.copy_(alone.T)
    scores = ground_truth.score_hsae(model, truth)
    assert scores["absorption_level2"] == pytest.approx(1, abs=0.05)
    assert scores["parent_f1"] < 0.7
    assert scores["edge_ap"] < 0.7
    assert scores["edge_ap_decoder"] == 1
    assert scores["root_f1"] == pytest.approx((3 * scores["parent_f1"] + 2) / 5)


def test_a_flat_dictionary_of_the_features_has_the_edges_in_its_coactivation_only(truth: Truth):
    scores = ground_truth.score_flat(perfect_level1(), truth, seed=0)
    assert scores["edge_ap_conditional_probability"] == scores["edge_ap"] == 1
    # The rest is of that reading, not of the last one.
    assert scores["edge_f1"] == scores["ancestor_precision"] == scores["ancestor_recall"] == 1
    assert scores["edge_ap_decoder_cosine"] < 0.5  # orthogonal directions say nothing
    assert scores["absorption"] == 0


@pytest.mark.parametrize(
    "dictionary",
    [PrincipalComponents(torch.zeros(16), torch.eye(11, 16), l0=11), NonnegativeParts(torch.eye(11, 32), l0=11)],
)
def test_factors_that_are_the_features_have_what_an_autoencoder_of_them_has(dictionary: Dictionary, truth: Truth):
    found, expected = (ground_truth.score_flat(m, truth, seed=0) for m in (dictionary, perfect_level1()))
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["mcc"] == found["edge_ap"] == found["matched_f1"] == 1


def test_directions_are_what_a_latent_adds_to_a_reconstruction():
    centers = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert torch.equal(ground_truth.directions_of(Clusters(centers[:1], torch.tensor([0]), centers)), centers)
    assert torch.equal(ground_truth.directions_of(Mixture(centers, torch.ones(2, 2), torch.ones(2))), centers)
    parts = NonnegativeParts(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), l0=1)
    assert ground_truth.directions_of(parts).tolist() == [[1, -2]]


def test_clusters_with_fewer_centres_than_features_find_no_edges(truth: Truth):
    features = truth.forest.features
    scores = ground_truth.score_flat(Clusters(features[:4], torch.arange(4), features[:4]), truth, seed=0)
    assert scores["l0"] == 1
    assert scores["uniqueness"] == 1
    assert scores["edge_ap_agglomerative"] < 0.5  # four clusters of one centre, though there are five roots
    assert scores["matched_f1"] < 4 / 11


def test_an_absorbed_parent_is_seen(truth: Truth):
    model = perfect_level1()
    with torch.no_grad():
        for child in range(6):
            parent, own = child // 2, 3 + child
            model.W_dec[own, parent] = 1
            model.W_enc[own, parent] = -5  # the parent's latent is silent where its child is active
    assert ground_truth.score_flat(model, truth, seed=0)["absorption"] == pytest.approx(1, abs=0.02)


def test_every_method_is_scored_and_the_scores_repeat_exactly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posthoc, "META_STEPS", 20)
    first = ground_truth.score_all(CONFIG, 0)
    assert list(first) == ["data", "hsae", "level1_alone", *CONFIG.rivals]
    assert len({frozenset(scores) for method, scores in first.items() if method in CONFIG.rivals}) == 1
    assert first["kmeans"]["l0"] == first["ward"]["l0"] == first["gmm"]["l0"] == 1
    assert first["pca"]["l0"] == max(round(first["hsae"]["l0"]), 1)
    assert first["data"]["features"] == 11
    assert first == ground_truth.score_all(CONFIG, 0)
    assert first != ground_truth.score_all(CONFIG, 1)
    figure = ground_truth_plots.recovery(first)
    assert {axes.get_title() for axes in figure.axes} == set(ground_truth_plots.SHOWN.values())


def test_processes_come_to_the_same_scores():
    config = dataclasses.replace(CONFIG, rivals=["kmeans"])
    with workers("synthetic", 2) as each:
        assert ground_truth.score_all(config, 0, each) == ground_truth.score_all(config, 0)


def test_rivals_train_for_as_long_as_all_phases(monkeypatch: pytest.MonkeyPatch):
    steps: dict[str, int] = {}
    fit = ground_truth.fit

    def counting(label: str, model: object, data: Samples, gradients: object, phase: Phase, *rest: int) -> object:
        steps[label] = phase.n_steps(data)
        return fit(label, model, data, gradients, phase, *rest)  # pyright: ignore

    monkeypatch.setattr(ground_truth, "fit", counting)
    data = synthetic.sample(synthetic.ground_truth(CONFIG.data, torch.Generator().manual_seed(0)), 2048,
                            torch.Generator().manual_seed(1))  # fmt: skip
    ground_truth.train_flat("topk", CONFIG, Samples(data, Normalizer.fit(data.inputs)), 2.0, 0)
    assert steps == {"topk": 4 * 16}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("d_sae2", 0, "above 0"), ("train_samples", 0, "above 0"), ("rivals", ["x"], "one of")],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: object, allowed: str):
    with pytest.raises(ValueError, match=f"`{key}` must be {allowed}"):
        dataclasses.replace(CONFIG, **{key: value})
