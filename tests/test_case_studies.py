import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array

from hsae import case_page, case_studies, feature_plots
from hsae.case_studies import CRITERIA, CaseConfig, LevelActs, Material, criteria, examples, select
from hsae.interpretability_proxy import ngram_codes
from hsae.latent_effects import Raised
from hsae.streams import Stream
from tests.explorer import ALPHABET, EVIDENCE, TEXT, activations, raised

STREAM = Stream(0, "test")

CONFIG = CaseConfig(
    cases=2, children=3, characters=2, snippets=3, snippet_chars=16, prompt_chars=8, sample_chars=10, dose=1.0
)


WEIGHT = np.zeros((4, 12))
WEIGHT[[0, 0, 0, 1, 1, 2], [3, 4, 5, 6, 7, 8]] = [0.9, 0.5, 0.4, 0.8, 0.2, 0.3]


CODES = ngram_codes(np.array([ALPHABET.index(c) for c in TEXT]), np.arange(len(TEXT)), len(ALPHABET), 2)


@pytest.fixture
def material() -> Material:
    choice, shown = (LevelActs(activations(n, 12, 1), activations(n, 4, 2), np.ones(n, bool)) for n in (500, len(TEXT)))
    return Material(EVIDENCE, choice, shown, WEIGHT, TEXT, CODES, raised(4, 0), ALPHABET)


def test_criteria_by_hand():
    ratio = np.array([4.0, 2.0, 5.0, np.nan])
    found = criteria(ratio, np.array([2, 1, 0, 3]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert found["strong"].tolist() == [True, True, False, False]
    assert found["causal"].tolist() == [True, False, True, False]
    assert found["hierarchical"].tolist() == [True, False, False, True]
    assert found["met"].tolist() == [3, 1, 1, 1]
    assert found["share"].tolist() == [0.4, 0.3, 0.2, 0.1]
    # Percentiles of share, ratio and children: 1, 2/3, 3/4; 3/4, 1/3, 1/2; 1/2, 1, 1/4; 1/4, none, 1.
    expected = [(1 + 2 / 3 + 0.75) / 3, (0.75 + 1 / 3 + 0.5) / 3, (0.5 + 1 + 0.25) / 3, (0.25 + 0 + 1) / 3]
    assert found["rank"].tolist() == pytest.approx(expected)


def column(n: int, *runs: tuple[int, int]) -> np.ndarray:
    """1 on some runs of tokens."""
    return np.array([float(any(first <= i < last for first, last in runs)) for i in range(n)])


def test_families_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(case_studies, "MIN_TOKENS", 10)
    parents = csc_array(np.stack([column(100, (0, 30)), column(100, (0, 60))], 1))
    children = csc_array(
        np.stack([column(100, (20, 40)), column(100, (21, 41)), column(100, (0, 9)), column(100, (0, 20))], 1)
    )
    weight = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    acts = LevelActs(children, parents, np.ones(100, bool))
    assert acts.density.tolist() == [0.3, 0.6]
    # Half of its tokens are the first parent's, though it is active on .3 only (twice that is .6): not often enough;
    # the second parent is active on more than half of all tokens, and so with everyone.
    assert not acts.families(weight)[1].any()
    assert acts.families(weight)[0].tolist() == [False] * 4
    inside = csc_array(
        np.stack([column(100, (10, 30)), column(100, (18, 38)), column(100, (0, 9)), column(100, (0, 20))], 1)
    )
    found = LevelActs(inside, parents, np.ones(100, bool)).families(weight)
    assert found[0].tolist() == [True, True, False, False], "the third is on too few tokens, the fourth has no weight"


def test_latents_are_chosen_by_one_text_and_judged_by_the_other():
    n = 400
    parent = np.zeros((n, 2))
    parent[: n // 10, 0] = 1.0
    apart = np.roll(parent, n // 2, axis=0)
    children = np.repeat(parent[:, :1], 3, axis=1)
    weight = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    choice, shown = (LevelActs(csc_array(children), csc_array(own), np.ones(n, bool)) for own in (parent, apart))
    effects = pd.DataFrame(
        {
            "level": 2, "latent": [0, 1], "tokens": 9, "kl": [0.1, 0.4], "kl_null": 0.1,
            "kl_choice": [0.4, 0.1], "kl_null_choice": 0.1,
        }
    )  # fmt: skip
    material = Material(
        dataclasses.replace(EVIDENCE, effects=effects),
        choice,
        shown,
        weight,
        "x" * n,
        {1: np.zeros(n, int)},
        raised(2, 0),
        ALPHABET,
    )
    assert material.chosen["met"].tolist()[0] == 3
    assert material.found["met"].tolist()[0] == 1, "its children are elsewhere in the other text, and its effect small"
    assert material.chosen["children"].tolist() == [3, 0]
    assert material.found["children"].tolist() == [0, 0]
    assert material.chosen["causal"].tolist() == [True, False]
    assert material.found["causal"].tolist() == [False, True]
    own = case_studies.case(material, 0, CONFIG, STREAM)
    found = {question: (verdict, text) for verdict, question, text in own["evidence"]}
    assert found["it changes what comes next"] == (
        "against", "KL 0.100 nats without it, 0.100 for a random direction: 1.0 times as much",
    )  # fmt: skip
    assert found["it is a parent"][0] == "against"
    assert found["it is a parent"][1].startswith("0 of its 3 children that other text has chosen are active with it")
    assert (own["met_choice"], own["met"]) == (3, 1)
    assert case_studies.summarize(material, [own])["cases"][0]["met_choice"] == 3


def chosen(directions: np.ndarray, n: int) -> list[int]:
    found = pd.DataFrame(
        {
            "met": [4, 4, 3, 1, 1],
            "rank": [0.5, 0.9, 0.8, 0.2, 0.1],
            "share": [0.1, 0.2, 0.3, 0.15, 0.25],
            "strong": True,
        }
    )
    return select(found, directions, n)


def test_those_that_meet_most_come_first_and_the_largest_of_the_worst_last():
    assert chosen(np.eye(5), 3) == [1, 0, 2, 4]


def test_no_two_alike():
    directions = np.eye(5)
    directions[0] = directions[1] + 0.1
    assert chosen(directions, 3) == [1, 2, 3, 4]


def test_where_all_are_chosen_none_is_left_to_fail():
    assert chosen(np.eye(5), 5) == [1, 0, 2, 3, 4]


def test_a_rule_fires_on_the_proxys_n_grams_of_tokens_not_on_their_letters():
    vocabulary = ["the", "ba", "th", "e", " ", "b"]
    tokens = np.array([0, 4, 1, 2, 3, 4, 2, 3, 5, 0])  # "the bathe theb" + "the"
    text = [vocabulary[token] for token in tokens]
    n = len(tokens)
    codes = ngram_codes(tokens, np.arange(n), len(vocabulary), 2)
    proxies = pd.DataFrame(
        {
            "latent": [0, 1], "length": [1, 2], "proxy_f1": 0.5, "proxy_f1_null": 0.1, "rule": '["the"]',
            "codes": ["[0]", f"[{2 * 6 + 3}]"], "method": "HSAE level2",
        }
    )  # fmt: skip
    acts = LevelActs(csc_array((n, 12)), csc_array((n, 4)), np.ones(n, bool))
    evidence = dataclasses.replace(EVIDENCE, proxies=proxies)
    own = Material(evidence, acts, acts, WEIGHT, text, codes, raised(4, 0), vocabulary)
    assert np.flatnonzero(own.fires(0)).tolist() == [0, 9], "one token"
    assert np.flatnonzero(own.fires(1)).tolist() == [4, 7], "two of them"
    assert not own.fires(2).any(), "no rule"


def test_examples_and_counter_examples():
    text = "abcdefghij" * 20
    acts = np.zeros(200)
    acts[[13, 55, 100]] = [1.0, 3.0, 2.0]
    predicted = np.zeros(200, dtype=bool)
    predicted[[55, 140]] = True
    found = examples(acts, predicted, text, CONFIG, STREAM)
    assert found["strongest"][0] == "defghijabcde⟦f⟧ghi"
    assert len(found["strongest"]) == 3
    assert len(found["missed"]) == 2
    assert found["silent"] == ["ijabcdefghijabcd"]  # the rule fires on the first "a" of 140; nothing is active there


def test_a_masked_token_is_no_example_and_not_counted(material: Material):
    own, rule = material.shown, ["T"]
    kept = ~material.fires(0)
    assert kept.tolist() == [c != "T" for c in TEXT]
    h1, h2 = (csc_array(acts.toarray() * kept[:, None]) for acts in (own.h1, own.h2))
    shown = LevelActs(h1, h2, kept)
    found = case_studies.case(dataclasses.replace(material, shown=shown), 0, CONFIG, STREAM)
    assert found["rule"] == rule
    assert found["examples"]["silent"] == [], "the rule fires on masked tokens alone"
    assert "⟦T" not in "".join(found["examples"]["strongest"])
    assert found["density"] == pytest.approx(shown.h2[:, [0]].count_nonzero() / kept.sum())


def test_a_case_has_evidence_for_and_against(material: Material):
    case = case_studies.case(material, 0, CONFIG, STREAM)
    verdicts = {question: verdict for verdict, question, _ in case["evidence"]}
    assert verdicts["another seed finds it again"] == "for"
    assert verdicts["it changes what comes next"] == "against"  # twice as much as random, four times is asked for
    assert verdicts["it is a parent"] == "against"
    assert verdicts["a short rule describes it (a proxy)"] == "against"
    assert verdicts["it carries the task q u"] == "for"
    assert [child["child"] for child in case["children"]] == [3, 4, 5]
    assert case["children"][0]["rule"] == ["th"]
    assert case["rule"] == ["T"]


def test_what_was_not_measured_is_unknown(material: Material):
    case = case_studies.case(material, 3, CONFIG, STREAM)
    verdicts = {question: (verdict, found) for verdict, question, found in case["evidence"]}
    assert verdicts["it changes what comes next"] == ("unknown", "not measured")
    assert verdicts["a short rule describes it (a proxy)"] == ("unknown", "not measured")
    assert case["children"] == []


def test_a_figure_of_a_case_shows_its_characters_children_and_place(material: Material):
    left, middle, right = feature_plots.case(*case_studies.frames(material, 0, CONFIG)).axes
    assert len(left.get_yticklabels()) == 4
    assert [label.get_text() for label in middle.get_yticklabels()] == ["3", "4", "5"]
    assert len(right.get_yticklabels()) == 5


def test_a_figure_of_a_case_of_which_little_is_known(material: Material):
    assert len(feature_plots.case(*case_studies.frames(material, 3, CONFIG)).axes) == 3


@pytest.fixture
def markdown(material: Material) -> str:
    latents = [0, 1, 3]
    cases = [
        {**case_studies.case(material, i, CONFIG, STREAM), "figure": f"{i}.png", "steered": "| `x` |"} for i in latents
    ]
    return case_page.markdown(
        material=material, cases=cases, corpus="a test", prompt="<i>`|*", plain="# not a head", dose=1.0
    )


def test_the_page_names_the_case_that_fails_and_what_was_asked(markdown: str):
    assert "2 level-2 latents of the HSAE on a test" in markdown
    assert re.findall("^## .*", markdown, re.MULTILINE) == [
        "## level 2, latent 0", "## level 2, latent 1", "## A case that fails: level 2, latent 3",
    ]  # fmt: skip
    for name in CRITERIA:
        assert f"| {name} |" in markdown
    assert "| against | it is a parent |" in markdown


def test_text_of_the_corpus_stays_text_in_both(markdown: str):
    page = case_page.page(markdown)
    assert "<img src=x" not in page
    assert "&lt;" in page
    assert "<script" not in page
    assert "<i>" not in page
    assert page.count("<h1>") == 1
    assert "<h1>not a head" not in page
    assert page.count("<table>") == 1 + 3 + 2  # criteria, evidence, children of those that have some


@pytest.mark.parametrize("text", ["a|b", "`", "```", "<b>", "*x*", "[a](b)", "\\", "\n\n# x", "⏎", "&amp;"])
def test_a_piece_of_code_is_inert(text: str):
    page = case_page.page(f"| x |\n|---|\n| {case_page.inert(text)} |\n")
    found = re.search("<td><code>(.*)</code></td>", page)
    assert found
    assert not re.search("<[a-z]", found[1])


def test_the_activity_of_nothing_is_survived():
    nothing = LevelActs(csc_array((len(TEXT), 12)), csc_array((len(TEXT), 4)), np.ones(len(TEXT), bool))
    none = Raised(np.full((4, 2), -1), np.zeros((4, 2)))
    material = Material(EVIDENCE, nothing, nothing, WEIGHT, TEXT, CODES, none, "abcde")
    assert case_studies.case(material, 1, CONFIG, STREAM)["examples"]["strongest"] == []
    assert case_studies.summarize(material, [])["latents"] == 4
