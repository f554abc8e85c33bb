import re

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array, csr_array

from hsae import case_page, case_studies, feature_plots
from hsae.case_studies import CRITERIA, CaseConfig, Material, criteria, examples, fires, select
from tests.explorer import ALPHABET, EVIDENCE, TEXT, activations

CONFIG = CaseConfig(
    cases=2, children=3, characters=2, snippets=3, snippet_chars=16, prompt_chars=8, sample_chars=10, dose=1.0
)


@pytest.fixture
def material() -> Material:
    raised = csr_array(np.random.default_rng(0).normal(size=(4, len(ALPHABET))))
    return Material(EVIDENCE, activations(len(TEXT), 4, 2), TEXT, raised, ALPHABET, fdr=0.01)


def known(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"cosine_null": 0.5, **columns}, index=pd.RangeIndex(4, name="latent"))


CHILDREN = pd.DataFrame(
    {
        "parent": [0, 0, 1, 1, 2, 2],
        "child": range(6),
        "q": [0.001, 0.001, 0.001, 0.5, 0.001, np.nan],
        "p_parent_given_child": [0.9, 0.5, 0.9, 0.9, 0.4, 0.9],
    }
)


def test_criteria_by_hand():
    table = known(cosine=[0.8, 0.6, 0.9, np.nan], kl=[0.4, 0.4, 0.5, np.nan], kl_null=[0.1, 0.2, 0.1, np.nan])
    found = criteria(table, CHILDREN, np.array([4.0, 3.0, 2.0, 1.0]), fdr=0.01)
    assert found["strong"].tolist() == [True, True, False, False]
    assert found["stable"].tolist() == [True, False, True, False]
    assert found["causal"].tolist() == [True, False, True, False]
    assert found["hierarchical"].tolist() == [True, False, False, False]
    assert found["telling_children"].tolist() == [2, 1, 0, 0]
    assert found["met"].tolist() == [4, 1, 2, 0]
    assert found["share"].tolist() == [0.4, 0.3, 0.2, 0.1]
    assert max(found["rank"]) == found["rank"].tolist()[0]
    assert min(found["rank"]) == found["rank"].tolist()[3]


def test_a_cosine_that_chance_reaches_is_not_stable():
    table = known(cosine=[0.8] * 4, kl=[1.0] * 4, kl_null=[0.1] * 4).assign(cosine_null=0.85)
    assert not any(criteria(table, CHILDREN, np.ones(4), fdr=0.01)["stable"])


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


def test_a_rule_fires_where_an_n_gram_ends():
    assert np.flatnonzero(fires("aaab", ["aa", "ab"])).tolist() == [1, 2, 3]
    assert not fires("aaab", []).any()
    assert np.flatnonzero(fires(["a", "aab", "ab"], ["aa", "b", "abab"])).tolist() == [1, 2]


def test_examples_and_counter_examples():
    text = "abcdefghij" * 20
    acts = np.zeros(200)
    acts[[13, 55, 100]] = [1.0, 3.0, 2.0]
    predicted = np.zeros(200, dtype=bool)
    predicted[[55, 140]] = True
    found = examples(acts, predicted, text, CONFIG, seed=0)
    assert found["strongest"][0] == "defghijabcde⟦f⟧ghi"
    assert len(found["strongest"]) == 3
    assert len(found["missed"]) == 2
    assert found["silent"] == ["ijabcdefghijabcd"]  # the rule fires on the first "a" of 140; nothing is active there


def test_a_case_has_evidence_for_and_against(material: Material):
    case = case_studies.case(material, 0, CONFIG, seed=0)
    verdicts = {question: verdict for verdict, question, _ in case["evidence"]}
    assert verdicts["another seed finds it again"] == "for"
    assert verdicts["it changes what comes next"] == "against"  # twice as much as random, four times is asked for
    assert verdicts["it is a parent"] == "against"  # one child tells of it
    assert verdicts["a short rule describes it (a proxy)"] == "against"
    assert verdicts["it carries the task q u"] == "for"
    assert [child["child"] for child in case["children"]] == [3, 4, 5]
    assert case["children"][0]["rule"] == ["th"]
    assert case["rule"] == ["T"]


def test_what_was_not_measured_is_unknown(material: Material):
    case = case_studies.case(material, 3, CONFIG, seed=0)
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
        {**case_studies.case(material, i, CONFIG, seed=0), "figure": f"{i}.png", "steered": "| `x` |"} for i in latents
    ]
    return case_page.markdown(
        found=material.found, cases=cases, corpus="a test", prompt="<i>`|*", plain="# not a head", dose=1.0
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
    material = Material(EVIDENCE, csc_array((len(TEXT), 4)), TEXT, csr_array((4, 5)), "abcde", fdr=0.01)
    assert case_studies.case(material, 1, CONFIG, seed=0)["examples"]["strongest"] == []
    assert case_studies.summarize(material.found, [])["latents"] == 4
