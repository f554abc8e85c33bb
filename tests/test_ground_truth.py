import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from hsae import (
    curriculum,
    ground_truth,
    ground_truth_plots,
    posthoc,
    search,
    sharpening,
    synthetic,
    training,
    variants,
)
from hsae.activations import Normalizer
from hsae.clustering import ClusteringConfig
from hsae.clusters import Clusters, Dictionary, Mixture, NonnegativeParts, PrincipalComponents
from hsae.dictionary import Activation, Start
from hsae.ground_truth import GroundTruthConfig, RivalConfig
from hsae.ground_truth_scores import Samples, Truth, directions_of, score_flat, score_hsae
from hsae.hierarchical import HierarchicalSAE
from hsae.losses import Coefficients
from hsae.sae import SAE
from hsae.samples import shared
from hsae.streams import Stream
from hsae.synthetic import SyntheticConfig
from hsae.training import Batches, Phase
from hsae.workers import workers

PHASE = Phase(epochs=1, batch_size=128, lr=1e-2, decay_fraction=0.2, anneal_fraction=0.1)
RIVAL = RivalConfig(batch_size=128, lr=1e-2)
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
    activation=Activation.jumprelu, dead_tokens=0, init_level2=Start.families, init_tokens=1024, start_l0=1.5,
    phase1=PHASE, sharpening=PHASE, phase2=PHASE, phase3=PHASE,
    clustering=ClusteringConfig(fit_tokens=2048, max_iter=5),
    rivals=["topk", "jumprelu", "kmeans", "minibatch_kmeans", "ward", "gmm", "pca", "nmf"],
    rival_settings={"topk": RIVAL, "jumprelu": RIVAL},
)  # fmt: skip
REAL = search.build(GroundTruthConfig, search.read_inputs()[1].section)  # params.yaml's
STREAM = Stream(0, "test")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta-SAEs train for a moment."""
    monkeypatch.setattr(posthoc, "META_STEPS", 20)


@pytest.fixture(scope="module")
def truths() -> tuple[Truth, Truth]:
    """A forest whose features are the first axes; samples, not normalised, to choose on and others to score on."""
    forest = synthetic.ground_truth(CONFIG.data, torch.Generator().manual_seed(0))
    forest = dataclasses.replace(forest, features=torch.eye(11, 16))
    data = [synthetic.sample(forest, 4000, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    normalizer = Normalizer(torch.zeros(16), torch.tensor(1.0))
    choosing, scoring = (Truth(forest, Samples(of_these, normalizer)) for of_these in data)
    return choosing, scoring


def perfect_level1() -> SAE:
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


def test_the_true_hierarchy_has_perfect_scores(truths: tuple[Truth, Truth]):
    scores = score_hsae(perfect(families()), *truths, STREAM)
    for name in ("mcc", "feature_f1", "matched_f1", "parent_f1", "root_f1", "edge_ap", "edge_f1", "uniqueness"):
        assert scores[name] == pytest.approx(1), name
    assert scores["edge_ap_by_direction"] == 1
    assert scores["edge_ap_decoder"] == scores["ancestor_precision"] == scores["ancestor_recall"] == 1
    assert scores["absorption"] == scores["absorption_level2"] == scores["dead_fraction"] == 0
    assert scores["explained_variance"] == pytest.approx(1)
    assert scores["l0"] == pytest.approx(truths[1].samples.data.l0())


def test_level_2_latents_that_are_silent_with_children_are_found_out(truths: tuple[Truth, Truth]):
    alone = families()
    alone[:3, 3:9] *= -2  # a parent is outvoted by its child
    model = perfect(families())
    with torch.no_grad():
        model.level2.W_enc.copy_(alone.T)
    scores = score_hsae(model, *truths, STREAM)
    assert scores["absorption_level2"] == pytest.approx(1, abs=0.05)
    assert scores["parent_f1"] < 0.7
    assert scores["edge_ap"] < 0.7
    assert scores["edge_ap_decoder"] == 1
    assert scores["root_f1"] == pytest.approx((3 * scores["parent_f1"] + 2) / 5)


def test_a_flat_dictionary_of_the_features_has_the_edges_in_its_coactivation_only(truths: tuple[Truth, Truth]):
    scores = score_flat(perfect_level1(), *truths, STREAM)
    assert scores["edge_ap_conditional_probability"] == scores["edge_ap"] == 1
    # The rest is of that reading, not of the last one.
    assert scores["edge_f1"] == scores["ancestor_precision"] == scores["ancestor_recall"] == 1
    assert scores["edge_ap_decoder_cosine"] < 0.5  # orthogonal directions say nothing
    assert scores["absorption"] == 0


@pytest.mark.parametrize(
    "dictionary",
    [PrincipalComponents(torch.zeros(16), torch.eye(11, 16), l0=11), NonnegativeParts(torch.eye(11, 32), l0=11)],
)
def test_factors_that_are_the_features_have_what_an_autoencoder_of_them_has(
    dictionary: Dictionary, truths: tuple[Truth, Truth]
):
    found, expected = (score_flat(m, *truths, STREAM) for m in (dictionary, perfect_level1()))
    assert found == pytest.approx(expected, abs=1e-6)
    assert found["mcc"] == found["edge_ap"] == found["matched_f1"] == 1


def test_directions_are_what_a_latent_adds_to_a_reconstruction():
    centers = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert torch.equal(directions_of(Clusters(centers[:1], torch.tensor([0]), centers)), centers)
    assert torch.equal(directions_of(Mixture(centers, torch.ones(2, 2), torch.ones(2))), centers)
    parts = NonnegativeParts(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), l0=1)
    assert directions_of(parts).tolist() == [[1, -2]]


def test_clusters_with_fewer_centres_than_features_find_no_edges(truths: tuple[Truth, Truth]):
    features = truths[0].forest.features
    scores = score_flat(Clusters(features[:4], torch.arange(4), features[:4]), *truths, STREAM)
    assert scores["l0"] == 1
    assert scores["uniqueness"] == 1
    assert scores["edge_ap_agglomerative"] < 0.5  # four clusters of one centre, though there are five roots
    assert scores["matched_f1"] < 4 / 11


def test_an_absorbed_parent_is_seen(truths: tuple[Truth, Truth]):
    model = perfect_level1()
    with torch.no_grad():
        for child in range(6):
            parent, own = child // 2, 3 + child
            model.W_dec[own, parent] = 1
            model.W_enc[own, parent] = -5  # the parent's latent is silent where its child is active
    assert score_flat(model, *truths, STREAM)["absorption"] == pytest.approx(1, abs=0.02)


def test_the_matching_of_children_is_chosen_on_the_choosing_samples_and_stays(truths: tuple[Truth, Truth]):
    """Level 1 has the features' directions, but latents are active in the place of others."""
    choosing, scoring = truths
    model = perfect(families())
    order = torch.tensor([0, 1, 2, 4, 3, 6, 5, 8, 7, 9, 10])  # siblings change places: level 2 does not mind
    order[3:9] = torch.tensor([5, 6, 7, 8, 3, 4])  # children of one parent stand for those of the next
    with torch.no_grad():
        model.level1.W_enc.copy_(torch.eye(16, 11)[:, order])
        model.level2.W_enc.copy_(families().T[order])
        model.level2.W_dec.copy_(families()[:, order])
    scores = score_hsae(model, choosing, scoring, STREAM)
    assert scores["edge_ap"] == scores["edge_ap_decoder"] == 1
    assert scores["edge_ap_by_direction"] < 0.5
    # Told another truth to choose on, it takes what is wrong on the scoring samples.
    permuted = choosing.samples.data.acts.clone()
    permuted[:, 3:9] = permuted[:, order[3:9]]
    misled = Samples(dataclasses.replace(choosing.samples.data, acts=permuted), choosing.samples.normalizer)
    moved = score_hsae(model, Truth(choosing.forest, misled), scoring, STREAM)
    assert moved["edge_ap"] < 0.5
    assert moved["edge_ap_by_direction"] == scores["edge_ap_by_direction"]


def test_every_method_is_scored_and_the_scores_repeat_exactly():
    first = ground_truth.score_all(CONFIG, STREAM)
    chance = ["untrained_hsae", "untrained_jumprelu", "untrained_topk", "random_directions"]
    assert list(first) == ["data", "hsae", "level1_alone", *CONFIG.rivals, *chance, "samples"]
    rivals = [method for method in first if method.removeprefix("untrained_") in CONFIG.rivals]
    assert len({frozenset(first[method]) for method in rivals}) == 1
    assert first["hsae"].keys() == first["untrained_hsae"].keys()
    assert first["kmeans"]["l0"] == first["ward"]["l0"] == first["gmm"]["l0"] == 1
    assert first["topk"]["l0"] == first["pca"]["l0"] == round(first["data"]["l0"])
    assert first["data"]["features"] == 11
    assert first["data"]["prevalence"] == 6 / 110
    assert 0 < first["random_directions"]["mcc"] < first["untrained_topk"]["mcc"] + 0.2 < 1
    assert first == ground_truth.score_all(CONFIG, STREAM)
    assert first["hsae"] != ground_truth.score_method(CONFIG, Stream(1, "test"), "hsae")[1]
    figure = ground_truth_plots.recovery(first)
    assert {axes.get_title() for axes in figure.axes} == set(ground_truth_plots.SHOWN.values())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["hsae", "untrained hsae"]
    assert labels[labels.index("topk") + 1] == "untrained topk"


def test_processes_come_to_the_same_scores():
    methods, scored = ["hsae", "untrained_hsae"], partial(ground_truth.score_method, CONFIG, STREAM)
    with workers("synthetic", 2) as each:
        assert list(each(scored, methods)) == list(map(scored, methods))


# Samples, and what is told


def test_what_is_chosen_and_what_is_scored_share_no_sample():
    drawn = ground_truth.draw(CONFIG, STREAM)
    inputs = [samples.data.inputs for samples in (drawn.train, drawn.choosing.samples, drawn.scoring.samples)]
    assert [len(x) for x in inputs] == [2048, 1024, 1024]
    rows = [{tuple(row) for row in x[x.norm(dim=1) > 0].tolist()} for x in inputs]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    assert drawn.choosing.forest is drawn.scoring.forest is drawn.forest
    assert shared(ground_truth.records(CONFIG, STREAM)) == []
    assert {record["role"] for record in ground_truth.records(CONFIG, STREAM)} == {"chosen", "scored"}


def test_all_are_told_how_many_features_and_roots_fire_in_a_training_sample():
    drawn = ground_truth.draw(CONFIG, STREAM)
    naive = [(sum(a > 0 for a in row), sum(a > 0 for a in row[:3] + row[9:])) for row in drawn.train.data.acts.tolist()]
    assert drawn.l0s == pytest.approx([sum(column) / 2048 for column in zip(*naive, strict=True)])
    # 3 parents at .2, .6 of them with a child; 2 singles at .15.
    assert drawn.l0s == pytest.approx([0.6 * 1.6 + 0.3, 0.9], abs=0.1)
    wanted = CONFIG.latents((2.6, 0.2))
    assert (wanted.k1, wanted.k2) == (3, 1)


def test_level_1_is_steered_above_the_true_l0_and_then_to_it(monkeypatch: pytest.MonkeyPatch):
    small = dataclasses.replace(PHASE, batch_size=32)
    config = dataclasses.replace(
        CONFIG, start_l0=2.0, phase1=dataclasses.replace(small, epochs=12),
        sharpening=dataclasses.replace(small, epochs=24, anneal_fraction=0.0),
    )  # fmt: skip
    drawn = ground_truth.draw(config, STREAM)
    before: list[tuple[float, torch.Tensor]] = []

    def l0(model: SAE) -> float:
        return (model.encode(drawn.train.x(slice(None))) != 0).double().sum(1).mean().item()

    def noting(model: SAE, *rest: Any) -> object:
        before.append((l0(model), model.W_dec.clone()))
        return sharpening.sharpen(model, *rest)

    monkeypatch.setattr(ground_truth, "sharpen", noting)
    model = ground_truth.train_level1(config, drawn, config.phase1, STREAM)
    ((l0_before, W_dec),) = before
    assert torch.equal(W_dec, model.W_dec)
    assert l0_before == pytest.approx(2 * drawn.l0s[0], rel=0.25)
    assert l0(model) == pytest.approx(drawn.l0s[0], rel=0.25)


def phases_of(method: str, config: GroundTruthConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Phase]:
    """The phases in which a method trains."""
    phases: dict[str, Phase] = {}
    fit = training.fit

    def noting(label: str, model: object, data: Samples, gradients: object, phase: Phase, *rest: object) -> object:
        phases[label] = phase
        return fit(label, model, data, gradients, phase, *rest)  # pyright: ignore

    for module in (ground_truth, sharpening, curriculum):
        monkeypatch.setattr(module, "fit", noting)
    ground_truth.model_of(method, config, ground_truth.draw(config, STREAM), STREAM)
    return phases


@pytest.mark.parametrize("method", ["hsae", "level1_alone", "topk", "jumprelu"])
def test_all_methods_train_for_as_long(method: str, monkeypatch: pytest.MonkeyPatch):
    own = RivalConfig(batch_size=64, lr=3e-3)
    config = dataclasses.replace(CONFIG, rival_settings=dict.fromkeys(CONFIG.rival_settings, own))
    phases = phases_of(method, config, monkeypatch)
    assert sum(phase.epochs for phase in phases.values()) == 4
    first = next(iter(phases.values()))
    assert (first.batch_size, first.lr) == ((128, 1e-2) if method in ("hsae", "level1_alone") else (64, 3e-3))
    assert ("phase1, sharpening" in phases) == (method in ("hsae", "level1_alone"))


# Chance


@pytest.mark.parametrize("d_in", [48, 64])
def test_no_untrained_decoder_knows_a_true_feature(d_in: int):
    data = dataclasses.replace(REAL.data, d_in=d_in)
    kinds = [REAL.activation.value, "matryoshka"]
    for seed in range(100):
        stream = Stream(seed, "synthetic")
        features = synthetic.ground_truth(data, stream.of("forest").torch()).features
        for kind in kinds:
            model = ground_truth.drawn_model(kind, dataclasses.replace(REAL, data=data), 5.0, stream)
            assert (model.W_dec @ features.T).abs().max() < 0.8, seed


CHANCE = dataclasses.replace(
    REAL,
    train_samples=16384,
    test_samples=8192,
    rivals=["relu", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"],
)


@pytest.mark.parametrize("kind", ["hsae", *CHANCE.rivals])
def test_what_is_untrained_scores_at_chance_by_direction(kind: str):
    precision, mcc, random = [], [], []
    for seed in range(3):
        stream = Stream(seed, "synthetic")
        _, scores = ground_truth.score_method(CHANCE, stream, f"untrained_{kind}")
        _, by_chance = ground_truth.score_method(CHANCE, stream, "random_directions")
        precision.append(scores["edge_ap_by_direction"])
        mcc.append(scores["mcc"])
        random.append(by_chance["mcc"])
        assert scores.get("edge_ap_meta_sae_untrained", 0.0) < 0.03
    assert sum(precision) / 3 == pytest.approx(96 / (160 * 159), abs=0.02)
    assert sum(mcc) / 3 == pytest.approx(sum(random) / 3, abs=0.02)


def test_methods_see_the_same_batches_in_the_same_order_whatever_dies(monkeypatch: pytest.MonkeyPatch):
    """What is revived draws from another stream than the order of batches."""
    orders, revived = [], []
    for dead_tokens in (0, 256):
        seen: list[int] = []
        rows = Batches.rows

        def noting(batches: Batches, step: int, seen: list[int] = seen, rows: Any = rows) -> slice:
            found = rows(batches, step)
            seen.append(found.start)
            return found

        config = dataclasses.replace(CONFIG, dead_tokens=dead_tokens, phase1=dataclasses.replace(PHASE, epochs=5))
        drawn = ground_truth.draw(config, STREAM)
        with monkeypatch.context() as patch:
            patch.setattr(Batches, "rows", noting)
            for method in ("level1_alone", "topk", "jumprelu"):
                model = ground_truth.model_of(method, config, drawn, STREAM)
                revived.append(model.W_dec)  # pyright: ignore
        orders.append(seen)
    assert orders[0] == orders[1]
    # Phase 1 of all has one order; level 1 then goes on to sharpening.
    alone, rivals = orders[0][: 8 * 16], orders[0][8 * 16 :]
    assert rivals[: 8 * 16] == rivals[8 * 16 :]
    assert alone[: 7 * 16] == rivals[: 7 * 16]
    assert not torch.equal(revived[1], revived[4]), "nothing was revived, and nothing shown"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("d_sae2", 0, "above 0"),
        ("train_samples", 0, "above 0"),
        ("start_l0", 0.0, "above 0"),
        ("dead_tokens", -1, "0 or above"),
        ("rivals", ["x"], "one of"),
        ("rivals", ["matryoshka"], "such that `matryoshka` has some"),
        ("rival_settings", {"kmeans": RIVAL}, "for relu, topk"),
        ("rival_settings", {"topk": RIVAL}, "such that `jumprelu` has some"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: object, allowed: str):
    with pytest.raises(ValueError, match=f"` must be {allowed}"):
        dataclasses.replace(CONFIG, **{key: value})
