import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from hsae import report
from hsae.activations import Activations, Normalizer, Store
from hsae.hierarchical import HierarchicalSAE
from hsae.report import Latent, ReportConfig, Snippet, hierarchy, top_snippets
from hsae.sae import SAE

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 10
FIRST = 7  # the test split's offset in the corpus
TOKENS = torch.arange(100) % 26
CONFIG = ReportConfig(density_bins=5, n_parents=2, n_children=2, n_snippets=2, snippet_chars=4)


@pytest.fixture
def letters() -> Store:
    """Six contexts of the alphabet, written again and again; activations are random."""
    n = 6 * CONTEXT
    acts = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    offsets = FIRST + torch.arange(n, dtype=torch.int32)
    numbers = torch.arange(n, dtype=torch.int32)
    return Store(
        Activations(acts, offsets, numbers % CONTEXT, 0 * numbers, numbers >= 0), Normalizer.fit(acts), 0, CONTEXT
    )


def planted(peaks: dict[int, float]) -> torch.Tensor:
    acts = torch.zeros(6 * CONTEXT)
    for row, value in peaks.items():
        acts[row] = value
    return acts


def snippets(letters: Store, peaks: dict[int, float], n: int = 5, width: int = 4) -> list[Snippet]:
    return top_snippets(planted(peaks), letters, TOKENS, ALPHABET, n, width)


# Snippets


def test_planted_peaks_are_found_strongest_first_with_the_text_around_them(letters: Store):
    found = snippets(letters, {25: 2.0, 26: 1.0, 48: 4.0})
    # Row 48 is offset 55, the letter d; three quarters of the width stand before the peak.
    assert found[0] == Snippet(FIRST + 45, [("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 1.0)])
    # Row 25 is offset 32, the letter g.
    assert found[1] == Snippet(FIRST + 22, [("d", 0.0), ("e", 0.0), ("f", 0.0), ("g", 1.0)])
    assert len(found) == 2


def test_activations_are_shown_relative_to_the_peak(letters: Store):
    assert [act for _, act in snippets(letters, {23: 1.0, 24: 0.5, 25: 2.0})[0].chars] == [0.0, 0.5, 0.25, 1.0]


@pytest.mark.parametrize("row", range(20, 30))
def test_a_snippet_stays_within_its_context_and_contains_the_peak(letters: Store, row: int):
    (found,) = snippets(letters, {row: 3.0}, width=6)
    assert found.offset - FIRST >= 20
    assert found.offset - FIRST + len(found.chars) <= 30
    assert found.chars[row - (found.offset - FIRST)][1] == 1.0
    assert "".join(char for char, _ in found.chars) == "".join(
        ALPHABET[token] for token in TOKENS[found.offset : found.offset + len(found.chars)].tolist()
    )


def test_a_context_gives_one_snippet_only(letters: Store):
    assert len(snippets(letters, {20: 1.0, 24: 2.0, 29: 3.0})) == 1


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (3, 3), (99, 4)])
def test_there_are_as_many_snippets_as_asked_for_and_active_contexts(letters: Store, n: int, expected: int):
    assert len(snippets(letters, {5: 1.0, 15: 2.0, 25: 3.0, 35: 4.0}, n=n)) == expected


def test_a_dead_latent_has_no_snippets(letters: Store):
    assert snippets(letters, {}) == []


# The hierarchy


EDGES = pd.DataFrame(
    {
        "parent": [0, 1, 1, 1, 2],
        "child": [2, 0, 3, 4, 1],
        "weight": [1.0, 0.2, 0.8, 0.5, 1.0],
        "share": [1.0, 0.4, 0.9, 0.6, 1.0],
        "p_parent_given_child": [0.5, 0.1, 0.7, 0.3, 1.0],
    }
)


def trees(letters: Store, total: torch.Tensor | None = None) -> list[Latent]:
    h2 = torch.stack([planted({5: 1.0, 6: 1.0}), planted({30: 9.0}), planted({7: 0.5})], dim=1)
    h1 = torch.zeros(len(letters), 5)
    h1[17, 3] = 1.0
    total = torch.tensor([2.0, 9.0, 0.5]) if total is None else total
    return hierarchy(EDGES, total, h1, h2, letters, TOKENS, ALPHABET, CONFIG)


def test_parents_are_those_of_most_activation_and_children_those_of_most_weight(letters: Store):
    found = trees(letters)
    assert [latent.name for latent in found] == ["level 2, latent 1", "level 2, latent 0"]
    assert [child.name for child in found[0].children] == ["level 1, latent 3", "level 1, latent 4"]
    assert [child.edge and child.edge["weight"] for child in found[0].children] == [0.8, 0.5]
    assert [child.name for child in found[1].children] == ["level 1, latent 2"]
    assert [latent.density for latent in found] == pytest.approx([1 / 60, 2 / 60])
    assert found[0].children[0].density == pytest.approx(1 / 60)
    assert [snippet.offset for snippet in found[0].children[0].snippets] == [FIRST + 14]
    assert found[0].edge is None


def test_what_is_shown_of_latents_does_not_choose_them(letters: Store):
    found = trees(letters, total=torch.tensor([2.0, 1.0, 3.0]))
    assert [latent.name for latent in found] == ["level 2, latent 2", "level 2, latent 0"]
    assert found[0].density == pytest.approx(1 / 60)


def test_a_label_is_the_strongest_snippet_up_to_its_peak(letters: Store):
    # Row 17 is offset 24, the letter y.
    assert trees(letters)[0].children[0].label == "vwx[y]"
    assert trees(letters)[0].children[1].label == "(never active)"
    assert Latent("", 0.5, [Snippet(0, [("\n", 0.5), ("b", 1.0), ("c", 0.2)])], None, []).label == "⏎[b]"


def test_the_forest_has_a_row_per_child(letters: Store):
    rows = report.forest(trees(letters)).to_dict("records")
    assert [row["child"] for row in rows] == ["3: vwx[y]", "4: (never active)", "2: (never active)"]
    assert [row["share"] for row in rows] == [0.9, 0.6, 1.0]
    assert [row["p_parent_given_child"] for row in rows] == [0.7, 0.3, 0.5]
    assert len({row["parent"] for row in rows}) == 2
    assert list(report.forest([]).columns) == ["parent", "child", "share", "p_parent_given_child"]


def test_encode_gives_both_levels_activations_of_all_rows(letters: Store):
    torch.manual_seed(0)
    model = HierarchicalSAE(SAE(4, 6), SAE(6, 3, nonnegative=True))
    h1, h2 = report.encode(model, letters)
    out = model(letters.x(slice(None)))
    torch.testing.assert_close(h1, out.level1.acts.detach())
    torch.testing.assert_close(h2, out.level2.acts.detach())


def test_masked_rows_are_not_active_in_the_report(letters: Store):
    torch.manual_seed(0)
    model = HierarchicalSAE(SAE(4, 6), SAE(6, 3, nonnegative=True))
    kept = letters.activations.positions > 0
    acts = torch.where(kept[:, None], letters.activations.acts, 1e6)
    masked = replace(letters, activations=replace(letters.activations, acts=acts, kept=kept))
    for found, whole in zip(report.encode(model, masked), report.encode(model, letters), strict=True):
        assert not found[~kept].any()
        torch.testing.assert_close(found[kept], whole[kept])


# Frames


def test_densities_are_shares_of_tokens_under_the_dictionarys_name():
    acts = {"HSAE level 1": torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "k-means": torch.tensor([[1.0], [0.0]])}
    expected = pd.DataFrame({"dictionary": ["HSAE level 1"] * 2 + ["k-means"], "density": [1.0, 0.0, 0.5]})
    pd.testing.assert_frame_equal(report.densities(acts), expected)


METRICS = {
    "latents": 8, "l0": 2.0, "dead_fraction": 0.25, "fvu": 0.5, "explained_variance": 0.5, "ce": 2.0,
    "ce_recovered_zero": 0.9, "ce_recovered_mean": 0.8, "kl": 0.1, "kl_recovered_mean": 0.7,
}  # fmt: skip

EVALUATION = {
    "language_model": {"n_tokens": 60, "ce_clean": 1.5, "ce_zero_ablated": 4.0, "ce_mean_ablated": 3.0},
    "hsae": {"level1": METRICS, "level2": {**METRICS, "fvu_h1": 0.4}},
    "flat": {"topk": METRICS, "topk_level2": METRICS},
    "clustering": {"ward": METRICS},
}


def test_there_is_a_row_for_every_dictionary_with_its_metrics():
    rows = report.rows(EVALUATION)
    assert rows["family"].tolist() == ["HSAE", "HSAE", "flat SAE", "flat SAE", "clustering"]
    assert rows["method"].tolist() == [
        "HSAE level1", "HSAE level2", "flat SAE topk", "flat SAE topk, level-2 width", "clustering ward",
    ]  # fmt: skip
    assert rows["fvu"].tolist() == [0.5] * 5
    assert rows["fvu_h1"].dropna().tolist() == [0.4]


def test_controls_give_a_row_per_headline_and_control_with_its_null_and_nan_where_there_is_no_number():
    hierarchy = {"p_parent_given_child_decoder": 0.8, "p_parent_given_child_null_decoder": 0.1}
    levels = {"level1": {"l0": 20.0}, "recovered": {"level1": {"ce_recovered_mean": 0.9}}}
    frame = report.controls(
        {
            "trained": {**levels, "hierarchy": hierarchy},
            "shuffled_activations": {"level1": {"l0": 5.0}, "recovered": None},
        }
    )
    assert len(frame) == 2 * len(report.HEADLINES)
    found = frame.set_index(["headline", "control"])
    assert found.loc[("L0, level 1", "shuffled_activations"), "value"] == 5
    assert found.loc[("P(parent | child)", "trained")].tolist() == [0.8, 0.1]
    assert found.loc[("CE recovered (mean), level 1", "trained"), "value"] == 0.9
    assert found.loc[[("CE recovered (mean), level 1", "shuffled_activations")]].isna().all(axis=None)


# The page


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data


HOSTILE = "<script src=http://evil.example/x.js>alert(1)</script>\"'><img src=//evil.example onerror=alert(2)>&lt;"


def page(tmp_path: Path, text: str = HOSTILE) -> str:
    (tmp_path / "figure.png").write_bytes(b"\x89PNG")
    snippet = Snippet(12, [(char, 0.5) for char in text])
    child = Latent("level 1, latent 3", 0.5, [snippet], {"weight": 0.75, "share": 0.6, "p_parent_given_child": 0.9}, [])
    return report.page(
        corpus=text,
        evaluation=EVALUATION,
        layer=1,
        rows=report.rows(EVALUATION).to_dict("records"),
        figures=[("A figure", report.data_uri(tmp_path / "figure.png"))],
        controls=report.data_uri(tmp_path / "figure.png"),
        latents=[Latent("level 2, latent 1", 0.25, [snippet], None, [child])],
        sample=text,
        params={"prepare_data.path": text, "seed": 0},
    )


def test_hostile_text_is_shown_and_not_obeyed(tmp_path: Path):
    parsed = Page(page(tmp_path))
    assert not {"script", "iframe", "link", "object"} & {tag for tag, _ in parsed.tags}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    # In the corpus' name, in two snippets, in the sample and in the parameters.
    assert parsed.text.count(HOSTILE) == 5


def test_the_page_needs_no_other_address(tmp_path: Path):
    html = page(tmp_path, text="plain")
    references = [
        value
        for _, attributes in Page(html).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert references == 2 * ["data:image/png;base64,iVBORw=="]
    assert not re.search(r"https?:|//\w|url\(|@import", html)


def test_the_page_has_no_undefined_numbers(tmp_path: Path):
    cells = [cell.strip() for cell in Page(page(tmp_path, text="plain")).cells]
    assert "nan" not in cells
    assert "0.400" in cells


def test_the_page_shows_line_ends_and_the_strength_of_each_character(tmp_path: Path):
    parsed = Page(page(tmp_path, text="a\nb"))
    assert "a⏎b" in parsed.text
    shades = [attributes["style"] for tag, attributes in parsed.tags if tag == "span"]
    assert len(shades) == 6
    assert len(set(shades)) == 1


def test_content_that_the_page_needs_and_does_not_get_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        report.page(corpus="kjv")


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="`n_children` must be above 0; not 0"):
        ReportConfig(density_bins=5, n_parents=2, n_children=0, n_snippets=2, snippet_chars=4)
