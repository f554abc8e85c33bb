import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from hsae import absorption, untrained
from hsae.absorption import AbsorptionConfig, Labelled, Method, absorb
from hsae.activations import Activations, Store
from hsae.samples import record, shared
from hsae.streams import Stream

STREAM = Stream(0, "test")
CONFIG = AbsorptionConfig(fit_tokens=1, score_tokens=1, min_tokens=1, shifts=2)
N, CONTEXT = 2000, 20


def features(child_share: float) -> np.ndarray:
    """Which of four features each token has: the second only with the first, on this share of its tokens."""
    rng = np.random.default_rng(0)
    has = rng.random((N, 4)) < 0.3
    parent = np.flatnonzero(has[:, 0])
    has[:, 1] = False
    has[parent[: round(child_share * len(parent))], 1] = True
    return has


def on_features(has: np.ndarray) -> Labelled:
    """Tokens in R^50 that are sums of orthogonal features, with the first one and one that nobody has as concepts."""
    basis = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0))).Q[:4]
    concepts = {"parent": has[:, 0], "never": np.zeros(len(has), dtype=bool)}
    return Labelled(
        torch.from_numpy(has).float() @ basis, concepts, np.arange(len(has)) // CONTEXT, np.arange(len(has))
    )


def dictionary(absorbing: bool) -> Method:
    """One latent per feature; an absorbing child's holds its parent's direction, and the parent's is silent then."""
    basis = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(0))).Q[:4]
    directions = basis.clone()
    if absorbing:
        directions[1] += basis[0]

    def encode(x: torch.Tensor) -> torch.Tensor:
        codes = (x @ basis.T).clamp(min=0)
        codes = torch.where(codes > 0.5, codes, 0.0)
        if absorbing:
            codes[:, 0] *= codes[:, 1] == 0
        return codes

    return Method(encode, directions)


def measured(absorbing: bool, child_share: float) -> dict[str, Any]:
    data = on_features(features(child_share))
    result = absorption.measure({"own": dictionary(absorbing)}, data, data, CONFIG, STREAM)
    assert result["probes"]["parent"]["f1"] == 1
    return result["methods"]["own"]


def test_what_a_child_absorbs_is_exactly_the_share_of_the_parents_tokens_that_have_it():
    has = features(0.05)
    share = has[:, 1].sum() / has[:, 0].sum()
    found = measured(absorbing=True, child_share=0.05)["concepts"]["parent"]
    assert found["split_latents"] == 1, "F1 would rise by less than .03"
    assert found["absorption"] == found["absorption_fraction"] == found["missed"] == pytest.approx(share)
    assert found["first_feature_f1"] == pytest.approx(2 * (1 - share) / (2 - share))
    assert (found["precision"], found["recall"]) == (1, pytest.approx(1 - share))
    low, high = found["absorption_interval"]
    assert low < share < high


def test_nothing_is_absorbed_in_a_perfect_dictionary():
    found = measured(absorbing=False, child_share=0.05)["concepts"]["parent"]
    assert found["first_feature_f1"] == found["split_f1"] == found["split_latents"] == 1
    assert found["missed"] == found["absorption"] == found["absorption_fraction"] == 0
    assert found["absorption_interval"] == [0, 0]
    assert found["first_feature_f1_null"] < 0.6


def test_a_child_that_takes_much_of_its_parent_is_a_second_main_latent_and_absorbs_nothing():
    found = measured(absorbing=True, child_share=0.3)["concepts"]["parent"]
    assert (found["split_latents"], found["split_f1"], found["absorption"]) == (2, 1, 0)
    assert found["first_feature_f1"] < 0.85


def test_a_concept_that_is_too_rare_is_left_out_and_the_mean_is_over_the_others():
    result = measured(absorbing=True, child_share=0.05)
    assert [*result["concepts"]] == ["parent"]
    assert result["mean"] == result["concepts"]["parent"]
    data = on_features(features(0.05))
    rare = AbsorptionConfig(fit_tokens=1, score_tokens=1, min_tokens=N, shifts=1)
    empty = absorption.measure({"own": dictionary(absorbing=True)}, data, data, rare, STREAM)
    assert empty == {"probes": {}, "methods": {"own": {"concepts": {}, "mean": {}}}}
    assert absorption.tidy(empty).empty


def test_the_text_that_scores_has_no_say_in_which_concepts_there_are():
    fit = on_features(features(0.05))
    score = Labelled(fit.x, {"parent": np.zeros(N, dtype=bool)}, fit.contexts, fit.offsets)
    result = absorption.measure({"own": dictionary(absorbing=True)}, fit, score, CONFIG, STREAM)
    own = result["methods"]["own"]["concepts"]["parent"]
    assert result["probes"]["parent"]["n"] == own["first_feature_f1"] == 0
    assert own["recall"] is own["absorption"] is None
    json.dumps(result, allow_nan=False)


def test_the_mean_is_over_concepts_and_has_an_interval_of_its_own():
    data = on_features(features(0.05))
    both = {"parent": data.concepts["parent"], "third": features(0.05)[:, 2]}
    data = Labelled(data.x, both, data.contexts, data.offsets)
    result = absorption.measure({"own": dictionary(absorbing=True)}, data, data, CONFIG, STREAM)["methods"]["own"]
    shares = [result["concepts"][name]["absorption"] for name in both]
    assert shares[1] == 0
    assert result["mean"]["absorption"] == pytest.approx(shares[0] / 2)
    interval = result["concepts"]["parent"]["absorption_interval"]
    assert result["mean"]["absorption_interval"] == pytest.approx([bound / 2 for bound in interval])


def test_a_dead_dictionary_has_no_main_latent_misses_all_and_writes_no_nan():
    data = on_features(features(0.05))
    dead = Method(lambda x: torch.zeros(len(x), 3), torch.ones(3, 50))
    result = absorption.measure({"dead": dead}, data, data, CONFIG, STREAM)
    found = result["methods"]["dead"]["concepts"]["parent"]
    assert (found["split_latents"], found["first_feature_f1"], found["missed"]) == (0, 0, 1)
    assert found["absorption"] == found["absorption_fraction"] == found["first_feature_f1_null"] == 0
    assert found["precision"] is None
    json.dumps(result, allow_nan=False)


def naive(codes: np.ndarray, gains: np.ndarray, cosines: np.ndarray, main: list[int], projection: float) -> tuple:
    """SAEBench's rules for one token."""
    contributions = codes * gains
    others = [j for j in range(len(codes)) if j not in main]
    top = max(others, key=lambda j: contributions[j])
    silent = all(codes[j] == 0 for j in main)
    full = silent and projection > 0 and cosines[top] >= 0.025 and contributions[top] / projection >= 0.4
    m = sum(contributions[j] for j in main)
    absorbers = sorted((contributions[j] for j in others if cosines[j] >= 0.1 and contributions[j] > 0), reverse=True)
    a = sum(absorbers[:3])
    if m >= projection or a / projection < 0.4:
        return silent, full, 0.0
    c = min(a, projection - m)
    return silent, full, 1.0 if m <= 0 else c / (c + m)


def test_absorption_follows_the_published_rules_token_by_token():
    rng = np.random.default_rng(2)
    codes = rng.random((500, 8)) * (rng.random((500, 8)) < 0.5)
    cosines = np.array([0.01, 0.3, 0.05, 0.4, 0.2, -0.3, 0.6, 0.15])
    gains = cosines * rng.uniform(0.5, 2, 8)
    projection = (codes @ gains) + rng.normal(0, 0.3, 500)
    found = absorb(csr_array(codes), gains, cosines, [1, 4], projection)
    expected = [naive(row, gains, cosines, [1, 4], p) for row, p in zip(codes, projection, strict=True)]
    for ours, theirs in zip(found, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert 0 < found[1].mean() < found[0].mean() < 1
    assert {*np.sign(found[2]) + (found[2] == 1)} == {0, 1, 2}, "none, partial and full"


def test_half_of_a_concept_is_absorbed_where_the_main_latent_carries_the_other_half():
    codes = csr_array(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.8, 0.2]]))
    silent, full, fraction = absorb(codes, np.ones(2), np.ones(2), [0], np.ones(4))
    assert silent.tolist() == full.tolist() == [False, False, True, False]
    assert fraction.tolist() == [0.5, 0, 1, 0], "a fifth of the projection is below the threshold"


def test_the_probe_finds_the_direction_of_a_feature():
    data = on_features(features(0.0))
    probe = absorption.fit_probe(data.x.numpy().astype(float), data.concepts["parent"], Stream(0, "test"))
    assert np.linalg.norm(probe.direction) == pytest.approx(1)
    assert probe.direction @ dictionary(absorbing=False).directions[0].numpy() > 0.99
    assert ((data.x.numpy() @ probe.direction > probe.cutoff) == data.concepts["parent"]).all()


def test_tokens_are_labelled_by_their_place_in_the_corpus(store: Store):
    concepts = {"even": np.arange(1000) % 2 == 0}
    data = absorption.labelled(store, concepts, 100)
    assert len(data.x) == 16 * store.context
    rows = data.offsets - 10  # the store begins there
    assert torch.equal(data.x, store.x(slice(None))[rows])
    assert rows.tolist() == [*range(0, 12), *range(42, 66), *range(90, 150)], "of each document the same share"
    np.testing.assert_array_equal(data.concepts["even"], data.offsets % 2 == 0)
    assert np.bincount(data.contexts).tolist() == [store.context] * 16


def test_masked_tokens_are_not_labelled_and_contexts_keep_the_others(store: Store, masked: Store):
    concepts = {"even": np.arange(1000) % 2 == 0}
    data, whole = (absorption.labelled(own, concepts, 100) for own in (masked, store))
    kept = np.flatnonzero(np.arange(len(whole.x)) % store.context < store.context - 1)
    assert torch.equal(data.x, whole.x[kept])
    np.testing.assert_array_equal(data.concepts["even"], whole.concepts["even"][kept])
    np.testing.assert_array_equal(data.contexts, whole.contexts[kept])
    np.testing.assert_array_equal(data.offsets, whole.offsets[kept])


def test_results_repeat_to_the_bit_and_have_a_row_per_method_concept_and_measure():
    data = on_features(features(0.05))
    methods = {"a": dictionary(absorbing=True), "b": dictionary(absorbing=False)}
    results = [absorption.measure(methods, data, data, CONFIG, STREAM) for _ in range(2)]
    assert results[0] == results[1]
    table = absorption.tidy(results[0])
    assert len(table) == 2 * 2 * 3
    row = table.query("method == 'a' and concept == 'parent' and measure == 'absorption'").iloc[0]
    assert row["value"] == results[0]["methods"]["a"]["concepts"]["parent"]["absorption"]
    assert np.isnan(row["null"])


def test_a_config_without_tokens_is_refused():
    with pytest.raises(ValueError, match="`fit_tokens` must be above 0; not 0"):
        AbsorptionConfig(fit_tokens=0, score_tokens=1, min_tokens=1, shifts=1)


def chance(x: torch.Tensor, kind: str, d_sae: int) -> Method:
    """A dictionary that has learned nothing."""
    model = untrained.flat(kind, d_sae, d_sae / 10, x, STREAM.of(kind))
    return Method(model.encode, model.W_dec)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_an_untrained_dictionary_finds_no_concept_where_there_is_none(kind: str):
    parts = []
    for seed in (0, 1):
        x = torch.randn(N, 20, generator=torch.Generator().manual_seed(seed))
        concepts = {"none": np.random.default_rng(10 + seed).random(N) < 0.2}
        parts.append(Labelled(x, concepts, np.arange(N) // CONTEXT, np.arange(N) + seed * N))
    fit, score = parts
    result = absorption.measure({"untrained": chance(fit.x, kind, 60)}, fit, score, CONFIG, STREAM)
    found = result["methods"]["untrained"]["concepts"]["none"]
    assert found["first_feature_f1"] == pytest.approx(found["first_feature_f1_null"], abs=0.05)


def test_what_has_learned_the_features_is_above_what_has_learned_nothing():
    data = on_features(features(0.05))
    methods = {"own": dictionary(absorbing=False), "untrained own": chance(data.x, "jumprelu", 4)}
    result = absorption.measure(methods, data, data, CONFIG, STREAM)
    f1s = [found["concepts"]["parent"]["first_feature_f1"] for found in result["methods"].values()]
    assert f1s[0] == 1 > f1s[1] + 0.2
    table = absorption.tidy(result)
    assert table["method"].unique().tolist() == ["own"], "the untrained one stands beside it"
    row = table.query("concept == 'parent' and measure == 'first_feature_f1'").iloc[0]
    assert (row["value"], row["untrained"]) == tuple(f1s)


def test_methods_are_measured_on_the_same_draws_of_contexts():
    data = on_features(features(0.05))
    methods = {"a": dictionary(absorbing=True), "b": dictionary(absorbing=True)}
    result = absorption.measure(methods, data, data, CONFIG, STREAM)["methods"]
    assert result["a"] == result["b"]
    other = absorption.measure(methods, data, data, CONFIG, STREAM.of("other"))["methods"]["a"]["mean"]
    assert other["absorption"] == result["a"]["mean"]["absorption"]
    assert other["absorption_interval"] != result["a"]["mean"]["absorption_interval"]


def test_main_latents_are_chosen_and_scored_on_other_tokens(store: Store):
    first, second = (
        replace(store, activations=part(store.activations, rows)) for rows in (slice(120), slice(120, 240))
    )
    fit, score = (absorption.labelled(some, {}, 100) for some in (first, second))
    records = [record("main", "chosen", "val", fit.offsets), record("main", "scored", "test", score.offsets)]
    assert shared(records) == []
    assert records[0]["runs"] == [[10, 39], [52, 93], [100, 123]]
    assert records[1]["runs"] == [[130, 225]]
    one_split = [record("main", role, "test", fit.offsets) for role in ("chosen", "scored")]
    assert shared(one_split) == ["main"]


def part(rows: Activations, which: slice) -> Activations:
    """Some rows of a store."""
    return Activations(**{name: values[which] for name, values in vars(rows).items()})
