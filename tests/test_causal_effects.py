import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hsae import causal_effects, causal_plots
from hsae.causal import Basis, Runs, Tracer, attribution, exact, groups, hsae_bases, paths
from hsae.causal_effects import (
    Bootstrap,
    CausalConfig,
    Pair,
    area,
    areas,
    character_before,
    compare,
    curve,
    faithfulness,
    interval,
    matched_curve,
    path_effects,
    trace,
    two_sided,
)
from hsae.causal_nodes import (
    MATCHED,
    NEURONS,
    RANDOM,
    UNTRAINED,
    Choice,
    choose,
    difference_of_means,
    linear_basis,
    liveliness,
    matched,
    promoted_by_chance,
    rival_bases,
)
from hsae.hierarchical import HierarchicalSAE
from hsae.statistics import holm
from hsae.streams import Stream
from tests.test_causal import hsae, runs, task, tracer  # noqa: F401 (fixtures)

STREAM = Stream(0, "test")
CONFIG = CausalConfig(
    prompt_chars=6,
    pairs=8,
    min_pairs=2,
    ks=[1, 2, 4, 8],
    steps=2,
    exact=5,
    draws=2,
    nulls=3,
    distance=3,
    parents=2,
    children=2,
)


def test_the_area_is_the_mean_of_the_curve_by_hand():
    # From 0 to .4 at 1, .8 at 3, then flat to 4: (.2 + 1.2 + .8) / 4.
    assert area([1, 3], np.array([[0.4, 0.8]]), 4).tolist() == [pytest.approx(0.55)]
    # Up to the last k exactly: (.2 + 1.2) / 3.
    assert area([1, 3], np.array([[0.4, 0.8], [0.0, 0.0]]), 3).tolist() == [pytest.approx(1.4 / 3), 0]


def test_a_p_value_counts_both_tails():
    draws = np.concatenate([[1.0], np.full(95, 1.0), np.full(4, -1.0)])
    assert two_sided(draws) == pytest.approx(2 * 5 / 100)
    assert two_sided(np.concatenate([[0.0], np.zeros(99)])) == 1


def test_the_bootstrap_draws_clusters_not_pairs():
    own = dataclasses.replace(task(), ends=torch.tensor([0, 1, 2, 600, 601, 1200, 1201]))
    bootstrap = Bootstrap(own, STREAM)
    assert bootstrap.weights.shape == (40_001, 7)
    assert (bootstrap.weights[0] == 1).all()
    assert (bootstrap.weights[:, 0] == bootstrap.weights[:, 2]).all()
    assert (bootstrap.weights[1:, [0, 3, 5]].sum(1) == 3).all(), "as many clusters as there are"
    effects, total = np.arange(14.0).reshape(2, 7), np.full(7, 2.0)
    shares = bootstrap.ratio(effects, total)
    np.testing.assert_allclose(shares[0], effects.mean(1) / 2)
    w = bootstrap.weights[5]
    np.testing.assert_allclose(shares[5], (effects * w).sum(1) / (total * w).sum())
    assert interval(shares[:, 0])["value"] == pytest.approx(1.5)


def test_intervals_cover_a_known_ratio():
    generator, covered = np.random.default_rng(0), 0
    own = dataclasses.replace(task(80, 6), ends=torch.arange(80) // 2 * 600)
    bootstrap = Bootstrap(own, STREAM)
    for _ in range(200):
        total = 2 + generator.normal(0, 0.5, 80)
        effect = 0.5 * total + generator.normal(0, 0.3, 40).repeat(2)
        low, high = interval(bootstrap.ratio(effect, total))["interval"]
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_all_coordinates_restore_everything(runs: Runs):  # noqa: F811
    basis = linear_basis(torch.eye(8))
    chosen = choose(basis, runs, runs.gradient([0.5]))
    found = curve(chosen, runs, [1, 8, 99])
    assert found.ks == [1, 8]
    sufficient, necessary = faithfulness(found, runs, Bootstrap(runs.task, STREAM))
    assert sufficient[0, 1] == pytest.approx(1, abs=1e-4)
    assert necessary[0, 1] == pytest.approx(1, abs=1e-4)
    assert abs(sufficient[0, 0] - 1) > 1e-3


def test_nodes_are_ranked_by_their_mean_attribution_and_one_that_is_more_is_named(runs: Runs):  # noqa: F811
    basis = linear_basis(torch.eye(8))
    gradient = torch.zeros_like(runs.clean)
    gradient[..., 5], gradient[..., 2] = -9.0, 3.0
    chosen = choose(basis, runs, gradient)
    change = runs.difference().sum(1).mean(0)
    scores = torch.zeros(8)
    scores[5], scores[2] = -9 * change[5], 3 * change[2]
    assert chosen.order.tolist()[0] == int(scores.argmax())
    assert chosen.order.tolist()[-1] == int(scores.argmin())
    torch.testing.assert_close(chosen.difference, change)
    ranked = Choice(basis, torch.tensor([3, 1, 0]), torch.tensor([1.0, 2.0, 0.0, -1.0]))
    assert ranked.promoted == 1


def test_a_random_basis_promotes_what_choosing_among_its_directions_does(runs: Runs):  # noqa: F811
    gradient = runs.gradient([0.5])
    found = promoted_by_chance(20, 4, runs, gradient, STREAM)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    for draw, direction in enumerate(found):
        random = torch.randn(20, 8, generator=STREAM.of(draw).torch())
        basis = linear_basis(random / random.norm(dim=1, keepdim=True))
        chosen = choose(basis, runs, gradient)
        torch.testing.assert_close(direction, basis.directions[chosen.promoted])
    assert len({*found[:, 0].tolist()}) == 4, "each from a basis of its own"


def test_rivals_are_orthonormal_and_the_components_are_ordered():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    bases = rival_bases(x, STREAM)
    for basis in bases.values():
        torch.testing.assert_close(basis.directions @ basis.directions.T, torch.eye(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(basis.encode(x) @ basis.directions, x, atol=1e-4, rtol=1e-4)
    spread = bases["PCA"].encode(x).std(0)
    assert (spread[:-1] >= spread[1:]).all()
    assert spread[0] == pytest.approx(8, rel=0.2)
    assert torch.equal(bases[RANDOM].directions, rival_bases(x, STREAM)[RANDOM].directions)


def test_where_all_pairs_differ_along_one_direction_their_mean_is_all(runs: Runs):  # noqa: F811
    corrupt = runs.clean.clone()
    direction = torch.randn(8, generator=torch.Generator().manual_seed(1))
    corrupt[:, -1] -= direction
    odds = runs.metric(corrupt)
    along = dataclasses.replace(runs, corrupt=corrupt, m_corrupt=odds)
    basis = difference_of_means(along)
    assert basis.directions.norm() == pytest.approx(1)
    found = curve(choose(basis, along, along.gradient([0.5])), along, [1, 2])
    assert found.ks == [1]
    np.testing.assert_allclose(found.restored[0], along.m_clean, atol=1e-3)


def test_matched_latents_are_as_active_as_those_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    rates = torch.cat([torch.full((30,), 0.02), torch.full((30,), 0.5)])
    acts = (torch.rand(4000, 60, generator=generator) < rates) * (1 + torch.rand(4000, 60, generator=generator))
    lively = liveliness(Basis(lambda x: x, torch.eye(60)), acts)
    torch.testing.assert_close(lively[:, 0].exp(), (acts != 0).double().mean(0))
    order = torch.tensor([40, 3, 41, 4, 5, *range(6, 40), *range(42, 60), 0, 1, 2])
    drawn = matched(order, lively, 5, STREAM)
    assert len({*drawn.tolist()} | {40, 3, 41, 4, 5}) == 10, "each once, and none that is matched itself"
    assert (rates[drawn] == rates[order[:5]]).all()
    assert torch.equal(drawn, matched(order, lively, 5, STREAM))
    assert not torch.equal(drawn, matched(order, lively, 5, Stream(1, "test")))


def test_random_latents_instead_of_the_first_k_are_drawn_for_every_k(runs: Runs):  # noqa: F811
    generator = torch.Generator().manual_seed(0)
    basis = Basis(lambda x: x.repeat_interleave(2, -1), torch.eye(8).repeat_interleave(2, 0) / 2)
    x = torch.randn(200, 8, generator=generator)
    choice = choose(basis, runs, runs.gradient([0.5]))
    found = matched_curve(choice, runs, x, [1, 2, 8, 9], 3, STREAM)
    assert found.ks == [1, 2, 8], "of 16 latents 9 cannot be replaced by as many others"
    lively = liveliness(basis, x)
    drawn = [matched(choice.order, lively, 2, STREAM.of(2, draw)) for draw in range(3)]
    expected = [curve(Choice(basis, own, choice.difference), runs, [2]).restored[0] for own in drawn]
    np.testing.assert_allclose(found.restored[1], np.mean(expected, axis=0), atol=1e-6)
    assert {*matched(choice.order, lively, 8, STREAM).tolist()} == {*choice.order[8:].tolist()}
    with pytest.raises(ValueError, match=r"`n` must be at most half of the latents \(=16\); not 9"):
        matched(choice.order, lively, 9, STREAM)


def test_too_much_is_no_better_than_too_little_for_cmd():
    found = areas([1, 2], np.array([[1.5, 1.5], [0.5, 0.5]]), 2)
    # From 0 to the first node: 0 to 1.5 or .5; distances from 1 go from 1 to .5 both times, by trapezia.
    np.testing.assert_allclose(found["cpr"], [(0.75 + 1.5) / 2, (0.25 + 0.5) / 2])
    np.testing.assert_allclose(found["cmd"], [(0.75 + 0.5) / 2, (0.75 + 0.5) / 2])


def test_methods_are_compared_task_by_task_and_all_that_is_read_together_is_one_family():
    generator = np.random.default_rng(0)
    noise = [np.append(0.0, generator.normal(0, 1, 1999)) for _ in range(3)]
    zero = {"cpr": np.zeros(2000), "cmd": np.ones(2000)}
    found = {
        task: {
            NEURONS: zero,
            "level1": {"cpr": shift + own, "cmd": np.ones(2000)},
            "level2": zero,
            "untrained level1": {"cpr": np.full(2000, 2.0), "cmd": np.ones(2000)},
            "untrained level2": zero,
        }
        for task, shift, own in zip("xyz", (5.0, 2.2, 0.0), noise, strict=True)
    }
    result = compare(found)
    assert {*result} == {"cpr", "cmd"}
    assert {*result["cpr"]} == {NEURONS, "level1", "level2", *UNTRAINED.values()}
    assert {*result["cpr"][NEURONS]} == {"level1", "level2"}, "what is untrained is compared with its level alone"
    assert {reference: [*result["cpr"][reference]] for reference in UNTRAINED.values()} == {
        "untrained level1": ["level1"],
        "untrained level2": ["level2"],
    }
    assert result["cpr"]["untrained level1"]["level1"]["x"]["value"] == 3
    own = result["cpr"][NEURONS]["level1"]
    # Two measures, three references with two methods each and two with one, three tasks: 48 comparisons. Five are
    # smaller than the next: four that are the same one, and that with the untrained level.
    assert own["x"]["p"] == pytest.approx(2 / 2000)
    assert own["x"]["p_holm"] == pytest.approx(48 * 2 / 2000)
    assert own["y"]["p_holm"] == pytest.approx(min(43 * own["y"]["p"], 1))
    assert own["y"]["p"] < 0.05 < own["z"]["p"]
    assert result["cpr"]["level1"][NEURONS]["x"]["value"] == -5
    assert result["cpr"][NEURONS]["level2"]["x"]["p_holm"] == 1
    assert result["cmd"][NEURONS]["level1"]["x"]["p_holm"] == 1
    rows = [
        row for of_measure in result.values() for of_reference in of_measure.values()
        for of_method in of_reference.values() for row in of_method.values()
    ]  # fmt: skip
    assert len(rows) == 48
    np.testing.assert_allclose([row["p_holm"] for row in rows], holm(np.array([row["p"] for row in rows])))


def test_the_bootstrap_has_draws_enough_for_the_family_that_is_published():
    # Ten methods beside each of three references, two levels beside untrained ones; two measures, seven tasks.
    drawn = Bootstrap(task(), STREAM).weights[:, 0] * 0 + 1.0
    assert 448 * two_sided(drawn) < 0.05


def test_the_character_before_is_a_control_that_can_fail(runs: Runs):  # noqa: F811
    found = character_before(runs, Bootstrap(runs.task, STREAM))
    assert found is not None
    other = runs.task.clean.clone()
    other[:, 1] = runs.task.corrupt[:, 2]
    odds = runs.task.metric(runs.tracer.model(other)[:, -1])
    kept = runs.task.clean[:, 1] != runs.task.corrupt[:, 2]
    assert kept.any()
    expected = (runs.m_clean - odds)[kept].sum() / (runs.m_clean - runs.m_corrupt)[kept].sum()
    assert found["value"] == pytest.approx(float(expected), abs=1e-3)
    assert abs(found["value"]) > 0.01


def test_pairs_without_a_character_before_or_with_that_very_one_have_no_part_in_the_control(runs: Runs):  # noqa: F811
    own = runs.task
    changed, clean, corrupt = own.changed.clone(), own.clean.clone(), own.corrupt.clone()
    clean[:, 1] = corrupt[:, 1] = (corrupt[:, 2] + 1) % 5
    changed[0] = 0
    corrupt[0] = clean[0]
    corrupt[0, 0] = (clean[0, 0] + 1) % 5
    clean[1, 1] = corrupt[1, 1] = corrupt[1, 2]  # what would be put there is there
    edited = dataclasses.replace(own, changed=changed, clean=clean, corrupt=corrupt)
    whole = Runs.of(runs.tracer, edited)
    other = clean[2:].clone()
    other[:, 1] = corrupt[2:, 2]
    odds = own.metric(runs.tracer.model(other)[:, -1])
    expected = (whole.m_clean[2:] - odds).sum() / (whole.m_clean - whole.m_corrupt)[2:].sum()
    bootstrap = Bootstrap(edited, STREAM)
    found = character_before(whole, bootstrap)
    assert found is not None
    assert found["value"] == pytest.approx(float(expected), abs=1e-3)
    assert np.isfinite(found["interval"]).all()
    first = dataclasses.replace(whole, task=dataclasses.replace(edited, changed=torch.zeros_like(changed)))
    assert character_before(first, bootstrap) is None


def test_attribution_is_judged_on_test_over_nodes_that_discovery_names(tracer: Tracer, hsae: HierarchicalSAE):  # noqa: F811
    pair = Pair(Runs.of(tracer, task(5)), Runs.of(tracer, task(9)))
    basis = hsae_bases(hsae)["level1"]
    nodes = (
        attribution(pair.discovery.codes(basis), basis, pair.discovery.gradient([0.0])).mean(0).abs()
        .argsort(descending=True, stable=True)[:6]
    )  # fmt: skip
    codes = pair.test.codes(basis)
    effects = exact(pair.test, codes, basis, nodes).mean(1)
    expected = {
        name: spearmanr(effects, attribution(codes, basis, pair.test.gradient(shares)).mean(0)[nodes])[0]
        for name, shares in {"attribution_patching": [0.0], "integrated_gradients": [0.25, 0.75]}.items()
    }
    assert causal_effects.agreement(basis, pair, 2, 6) == pytest.approx(expected)


def test_children_are_chosen_on_discovery(tracer: Tracer, hsae: HierarchicalSAE):  # noqa: F811
    pair = Pair(Runs.of(tracer, task(5)), Runs.of(tracer, task(9)))
    bases = hsae_bases(hsae)
    choice = choose(bases["level2"], pair.discovery, pair.discovery.gradient([0.5]))
    (row,) = path_effects(pair, hsae, choice, 1, 3, Bootstrap(pair.test.task, STREAM))
    heaviest = hsae.level2.W_dec[row["parent"]].topk(12).indices
    by_way = paths(pair.discovery, hsae, pair.discovery.codes(bases["level2"]), row["parent"], heaviest).mean(1)
    expected = heaviest[by_way.argsort(descending=True)[:3]]
    assert [child["child"] for child in row["children"]] == expected.tolist()
    on_test = paths(pair.test, hsae, pair.test.codes(bases["level2"]), row["parent"], expected)
    total = (pair.test.m_clean - pair.test.m_corrupt).mean()
    values = [child["value"] for child in row["children"]]
    np.testing.assert_allclose(values, on_test.mean(1) / total, atol=1e-4)


def test_a_task_is_traced_in_full_and_the_same_again(tracer: Tracer, hsae: HierarchicalSAE):  # noqa: F811
    pair = Pair(Runs.of(tracer, task(6)), Runs.of(tracer, task(9)))
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    levels = hsae_bases(hsae)
    untrained = {
        name: Basis(levels[level].encode, levels[level].directions.flip(1)) for level, name in UNTRAINED.items()
    }
    bases = {**levels, **untrained, **rival_bases(x, STREAM)}
    found = trace(pair, hsae, bases, x, CONFIG, STREAM)
    own = found.metrics
    rivals = {NEURONS, "PCA", RANDOM, "difference of means", MATCHED}
    assert {*own["methods"]} == {"level1", "level2", *UNTRAINED.values()} | rivals
    assert {*own["promoted"]} == {"level1", "level2", *UNTRAINED.values()}
    assert {name: rows.shape for name, rows in found.chance.items()} == {"level1": (3, 8), "level2": (3, 8)}
    assert {*own["shares"]} == {"h2", "e1", "e0", "h1"}
    assert own["methods"][NEURONS]["curve"]["8"]["sufficient"]["value"] == pytest.approx(1, abs=1e-3)
    assert own["economy"]["level2_latents"] >= 1
    assert own["economy"]["level1_latents"] <= 24
    assert [len(own["latents"][level]) for level in ("level1", "level2")] == [2, 2]
    assert [len(row["children"]) for row in own["paths"]] == [2, 2]
    first = own["latents"]["level2"][0]
    assert own["paths"][0]["parent"] == first["latent"]
    assert own["paths"][0]["effect"]["value"] == pytest.approx(first["sufficient"]["value"], abs=1e-5)
    assert np.shape(own["map"]) == (4, 3)
    assert own["map"][-1][0] == pytest.approx(1, abs=1e-3)
    assert {*found.areas} == {*own["methods"]}
    assert {*own["agreement"]["level1"]} == {"attribution_patching", "integrated_gradients"}
    last = task(9, changed=5)
    at_the_end = trace(Pair(pair.discovery, Runs.of(tracer, last)), hsae, bases, x, CONFIG, STREAM).metrics
    assert at_the_end["map"] is None
    assert trace(pair, hsae, bases, x, CONFIG, STREAM).metrics == own
    tasks = {"it": own, "another_one": own}
    titles = {"it", "another one"}
    shown = causal_plots.tracing_map({"it": own, "local": at_the_end}).axes
    assert {axes.get_title() for axes in shown} == {"it", ""}, "a panel, and its colour bar"
    for figure in (
        causal_plots.tracing_map(tasks), causal_plots.effects(tasks),
        causal_plots.shares(tasks), causal_plots.curves(tasks), causal_plots.paths(tasks),
    ):  # fmt: skip
        assert titles <= {axes.get_title() for axes in figure.axes}
    frame = causal_plots.curve_frame(tasks)
    assert set(frame["method"]) == {*own["methods"]}
    assert (frame["low"].to_numpy() <= frame["high"].to_numpy()).all()


def test_without_a_task_there_is_nothing_to_test_and_the_figures_say_so():
    assert compare({}) == {}
    assert causal_plots.curve_frame({}).empty
    for draw in (causal_plots.effects, causal_plots.tracing_map, causal_plots.curves, causal_plots.paths):
        assert "no task" in draw({}).texts[0].get_text()


def test_shares_of_nothing_but_level_2_are_all_in_h2(runs: Runs):  # noqa: F811
    bases = {"level1": linear_basis(torch.eye(8)), "level2": linear_basis(torch.eye(8))}
    found = causal_effects.shares(runs, groups(runs, bases), Bootstrap(runs.task, STREAM))
    assert found["h2"]["share"]["value"] == pytest.approx(1, abs=1e-4)
    for error in ("e0", "e1"):
        assert found[error]["share"]["value"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("pairs", 0, "above 0"),
        ("ks", [2, 1], "ascending"),
        ("ks", [], "ascending"),
        ("ks", [2, 4], "ascending, from 1"),
        ("distance", 7, "at most prompt_chars"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: object, allowed: str):
    with pytest.raises(ValueError, match=f"`{key}` must be {allowed}"):
        dataclasses.replace(CONFIG, **{key: value})
