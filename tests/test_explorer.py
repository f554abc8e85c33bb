import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array, csr_array

from hsae import explorer
from hsae.coactivation import among
from hsae.explorer import ExplorerConfig, Snippets, TextActs
from hsae.streams import Stream
from tests.explorer import CONFIG, HOSTILE, made

N = 400
STREAM = Stream(0, "test")


def decoded(found: Snippets) -> dict[str, np.ndarray]:
    kinds = {"first": "<u4", "start": "<u4", "bound": "<u4", "position": "u1", "value": "u1"}
    return {name: np.frombuffer(base64.b64decode(text), kinds[name]) for name, text in found.encoded().items()}


@pytest.fixture
def acts() -> csc_array:
    """Two latents that are active here and there, and between them one that never is."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((N, 3)) < 0.1, rng.exponential(1.0, (N, 3)), 0.0)
    dense[:, 1] = 0
    return csc_array(dense)


def test_snippets_hold_what_the_latent_does_there(acts: csc_array):
    found = decoded(explorer.snippets(acts, CONFIG, STREAM))
    assert found["first"][0] == 0
    assert found["first"][1] == found["first"][2]  # nothing of the silent one
    for latent in (0, 2):
        own = acts[:, [latent]].toarray().ravel()
        for s in range(found["first"][latent], found["first"][latent + 1]):
            start, inside = found["start"][s], slice(found["bound"][s], found["bound"][s + 1])
            window = own[start : start + CONFIG.snippet_chars]
            assert found["position"][inside].tolist() == np.flatnonzero(window).tolist()
            np.testing.assert_array_equal(found["value"][inside], np.ceil(window[window > 0] / own.max() * 255))


def test_the_strongest_snippets_come_first_and_do_not_overlap(acts: csc_array):
    found = decoded(explorer.snippets(acts, CONFIG, STREAM))
    starts = found["start"][: CONFIG.strongest].astype(int)
    assert starts[0] == max(int(acts[:, [0]].toarray().argmax()) - 12, 0)
    assert (np.diff(np.sort(starts)) >= CONFIG.snippet_chars).all()
    assert found["value"][: found["bound"][1]].max() == 255


def test_snippets_neither_choose_nor_mark_a_masked_token(acts: csc_array):
    kept = np.arange(acts.shape[0]) % 3 != 1  # pyright: ignore[reportOptionalSubscript]
    masked = csc_array(among(csr_array(acts.toarray()[kept]), kept))
    found = decoded(explorer.snippets(masked, CONFIG, STREAM))
    marked = np.repeat(found["start"], np.diff(found["bound"])) + found["position"]
    assert len(marked) > 0
    assert kept[marked].all()


def test_latents_by_hand():
    acts = csc_array(np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 3.0, 0.0], [1.0, 0.0, 4.0]]))
    directions = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    own = TextActs(acts, np.array([0, 1, 1, 0]))
    first, _, last = explorer.latents(own, own, directions, "xy", CONFIG)
    assert first["density"] == 0.75
    assert first["max"] == 2.0
    assert sum(first["histogram"]) == 3
    assert first["on"] == [["x", 0.75], ["y", 0.25]]
    assert first["near"] == [[1, 1.0]]  # the third is orthogonal
    assert first["together"][0] == [1, pytest.approx(1 / np.sqrt(3), rel=1e-2)]
    assert last["near"] == []


def test_a_latent_that_is_silent_is_described_too():
    acts = csc_array(np.array([[1.0, 0.0], [0.0, 0.0]]))
    own = TextActs(acts, np.array([0, 0]))
    silent = explorer.latents(own, own, np.eye(2), "x", CONFIG)[1]
    assert (silent["density"], silent["max"], silent["on"], silent["together"]) == (0, 0, [], [])


def test_what_is_listed_is_chosen_on_one_text_and_has_the_numbers_of_the_other():
    choice = TextActs(csc_array(np.array([[3.0, 1.0], [1.0, 0.0], [0.0, 0.0]])), np.array([0, 1, 2]))
    shown = TextActs(csc_array(np.array([[1.0, 0.0], [2.0, 2.0], [1.0, 0.0], [0.0, 1.0]])), np.array([0, 1, 2, 2]))
    first, _ = explorer.latents(choice, shown, np.eye(2), "xyz", CONFIG)
    assert first["on"] == [["x", 0.25], ["y", 0.5]], "in the order of the choice; z is not chosen"
    assert first["density"] == 0.75
    # Of four tokens the first is active on three, the second on two, both on one.
    assert first["together"] == [[1, pytest.approx((4 * 1 - 3 * 2) / np.sqrt(3 * 1 * 2 * 2), rel=1e-2)]]


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def data_of(page: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert block
    return json.loads(block[1])


def test_hostile_text_stays_text():
    page = made()
    assert HOSTILE in "".join(data_of(page)["text"])
    tags = [tag for tag, _ in Elements(page).found]
    assert tags.count("script") == 2  # the data and ours
    assert "img" not in tags
    assert "\u2028" not in page


def test_only_our_script_and_style_may_run_and_nothing_may_be_loaded():
    page = made()
    elements = Elements(page).found
    [policy] = [
        a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    script, style = (
        re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0],
        re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0],
    )
    for text in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert not [a for _, a in elements if a.get("src") or (a.get("href") or "#")[0] != "#"]


def test_content_joins_what_other_stages_found():
    levels = data_of(made())["levels"]
    parent, child = levels["2"][0], levels["1"][3]
    assert parent["children"][0][0] == 3
    assert child["parents"] == [[0, 0.9, 0.8, 0.7, 0.25]]
    assert child["rule"] == "th"
    assert child["labels"] == ["<b>the</b>"]
    assert parent["causal"] == [["q_u", 0.5, 0.25, 0.75]]
    assert levels["1"][0]["rule"] is None
    assert levels["1"][0]["f1"] is None


def test_the_page_is_the_same_every_time():
    assert made() == made()


def test_rows_by_latent_keep_their_order_and_nan_is_none():
    frame = pd.DataFrame({"parent": [1, 0, 1], "child": [5, 6, 7], "u": [0.123456, np.nan, 1.0]})
    assert explorer.records(frame, "parent", ["child", "u"]) == {1: [[5, 0.123], [7, 1.0]], 0: [[6, None]]}


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`snippet_chars` must be at most 256; not 300"):
        ExplorerConfig(**{**vars(CONFIG), "snippet_chars": 300})
