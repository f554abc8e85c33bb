import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csc_array

from hsae import feature_plots, interpretability_proxy, untrained
from hsae.interpretability_proxy import (
    Part,
    ProxyConfig,
    Rule,
    fit_rules,
    intruder_accuracy,
    ngram_codes,
    score,
    summarize,
    text_of,
)
from hsae.sparse_probing import f1
from hsae.streams import Stream

STREAM = Stream(0, "test")
ALPHABET = "abc"
CONFIG = ProxyConfig(fit_tokens=10, score_tokens=10, longest=2, ngrams=2, min_active=3, trials=50, snippet_chars=4)


def part(text: str, active: list[list[bool]]) -> Part:
    tokens = np.array([ALPHABET.index(c) for c in text], dtype=np.uint8)
    codes = ngram_codes(tokens, np.arange(len(text)), len(ALPHABET), 2)
    return Part(codes, csc_array(np.array(active, dtype=float).T))


def test_ngrams_are_numbers_and_back():
    tokens = np.array([0, 1, 2, 1], dtype=np.uint8)
    codes = ngram_codes(tokens, np.array([0, 2, 3]), 3, 3)
    assert codes[1].tolist() == [0, 2, 1]
    assert codes[2].tolist() == [-1, 1 * 3 + 2, 2 * 3 + 1]
    assert codes[3].tolist() == [-1, 0 * 9 + 1 * 3 + 2, 1 * 9 + 2 * 3 + 1]
    assert text_of(5, 2, ALPHABET) == "bc"
    assert text_of(0, 2, ALPHABET) == "aa"


def test_the_rule_is_what_the_latent_was_made_of():
    generator = np.random.default_rng(0)
    text = "".join(generator.choice(list(ALPHABET), 400))
    on_c = [c == "c" for c in text]
    after_ab = [text[max(i - 1, 0) : i + 1] == "ab" for i in range(len(text))]
    on_both = [x or y for x, y in zip(on_c, after_ab, strict=True)]
    own = part(text, [on_c, after_ab, [False] * 400, on_both])
    rules = fit_rules(own, 2)
    assert rules[0] == Rule(1, (2,))
    assert rules[1] == Rule(2, (1,))
    assert rules[2] == Rule(1, ())
    for rule, active in zip(rules[:2], (on_c, after_ab), strict=True):
        assert own.fires(rule).tolist() == active
    # c or ab takes four pairs; with two, the length 1 is better: c alone misses a ninth of the text.
    assert rules[3].length == 1
    assert 2 in rules[3].ngrams
    longer = fit_rules(own, 4)[3]
    assert longer.length == 2
    assert {text_of(code, 2, ALPHABET) for code in longer.ngrams} == {"ac", "bc", "cc", "ab"}


def test_ngrams_are_added_greedily_as_an_oracle_does():
    generator = np.random.default_rng(1)
    text = "".join(generator.choice(list(ALPHABET), 300))
    active = generator.random(300) < np.array([0.1, 0.5, 0.9])[[ALPHABET.index(c) for c in text]]
    own = part(text, [active.tolist()])
    (rule,) = fit_rules(own, 3)
    best, expected = 0.0, Rule(1, ())
    for length, codes in own.codes.items():
        chosen: list[int] = []
        known = [int(code) for code in np.unique(codes) if code >= 0]
        while len(chosen) < 3:
            left = [code for code in known if code not in chosen]
            options = {code: f1(np.isin(codes, [*chosen, code]), active) for code in left}
            code = max(options, key=lambda c: options[c])
            if options[code] <= (f1(np.isin(codes, chosen), active) if chosen else 0):
                break
            chosen.append(code)
        if f1(np.isin(codes, chosen), active) > best:
            best, expected = f1(np.isin(codes, chosen), active), Rule(length, tuple(chosen))
    assert rule == expected
    assert f1(own.fires(rule), active) == pytest.approx(best)


def test_f1_of_nothing_is_0():
    assert f1(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 0
    assert f1(np.array([True, True, False]), np.array([True, False, True])) == pytest.approx(0.5)


def test_a_rater_with_the_right_rule_finds_every_intruder_and_with_an_empty_one_guesses():
    acts = np.zeros(600)
    acts[20::30] = np.linspace(1, 2, len(acts[20::30]))
    right = acts != 0
    generator = np.random.default_rng(0)
    assert intruder_accuracy(acts, right, 8, 100, generator) == 1
    assert intruder_accuracy(acts, np.zeros(600, dtype=bool), 8, 100, generator) == pytest.approx(0.2)
    assert intruder_accuracy(acts, np.ones(600, dtype=bool), 8, 100, generator) == pytest.approx(0.2)
    wrong = np.roll(right, 15)  # fires on the silent pieces only
    assert intruder_accuracy(acts, wrong, 8, 200, generator) < 0.15  # type: ignore[operator]
    assert intruder_accuracy(np.zeros(600), right, 8, 10, generator) is None
    assert intruder_accuracy(np.ones(600), right, 8, 10, generator) is None, "nowhere silent"


def test_latents_are_scored_on_other_text_beside_a_null():
    generator = np.random.default_rng(2)
    texts = ["".join(generator.choice(list(ALPHABET), 500)) for _ in range(2)]
    actives = [
        [[c == "b" for c in text], (generator.random(500) < 0.3).tolist(), [i == 0 for i in range(500)]]
        for text in texts
    ]
    fit, test = (part(text, active) for text, active in zip(texts, actives, strict=True))
    table = score(fit, test, CONFIG, ALPHABET, STREAM)
    assert table["latent"].tolist() == [0, 1], "the last one is active on one token only"
    first, second = table.to_dict("records")
    assert (first["proxy_f1"], first["rule"], first["length"]) == (1, '["b"]', 1)
    assert first["codes"] == f"[{ALPHABET.index('b')}]"
    assert first["density"] == pytest.approx(texts[1].count("b") / 500)
    assert first["proxy_f1_null"] < 0.75
    assert second["proxy_f1"] == pytest.approx(second["proxy_f1_null"], abs=0.2)
    pd.testing.assert_frame_equal(table, score(fit, test, CONFIG, ALPHABET, STREAM))
    frame = pd.concat([table.assign(method="ours"), table.assign(method="theirs")], ignore_index=True)
    summary = summarize(frame, STREAM)
    assert {*summary} == {"ours", "theirs"}
    assert summary["ours"]["proxy_f1"]["mean"] == pytest.approx((1 + second["proxy_f1"]) / 2)
    assert summary["ours"]["proxy_intruder"]["n"] == table["proxy_intruder"].notna().sum()
    assert sum(summary["ours"]["length"].values()) == pytest.approx(1)
    assert len(feature_plots.proxies(frame).axes) == 3


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="`longest` must be above 0"):
        dataclasses.replace(CONFIG, longest=0)


def test_ngrams_that_no_number_can_hold_are_refused():
    with pytest.raises(ValueError, match="`longest` must be at most 10 for a vocabulary of 65 tokens; not 11"):
        ngram_codes(np.zeros(9, dtype=np.uint8), np.arange(9), 65, 11)


def test_snippets_of_what_is_equally_active_come_from_everywhere():
    acts = np.zeros(2000)
    acts[20::20] = 1.0
    fires = np.zeros(2000, dtype=bool)
    fires[1000:] = acts[1000:] != 0  # a rule that knows the second half only
    found = intruder_accuracy(acts, fires, 8, 400, np.random.default_rng(0))
    # With the first tenth alone no rule would ever fire on a snippet: .2.
    assert found is not None
    assert found > 0.25


def test_which_latents_are_scored_is_decided_without_the_text_that_scores_them():
    silent_later, silent_before = [c == "b" for c in "abcb" * 20], [False] * 80
    fit, test = part("abcb" * 20, [silent_later, silent_before]), part("abcb" * 20, [silent_before, silent_later])
    table = score(fit, test, CONFIG, ALPHABET, STREAM)
    assert table["latent"].tolist() == [0]
    assert table[["proxy_f1", "density"]].to_numpy().tolist() == [[0, 0]]
    assert np.isnan(table["proxy_intruder"].to_numpy(float)).all()


def test_an_untrained_dictionary_is_no_better_described_than_its_null_where_its_inputs_know_no_text():
    generator = np.random.default_rng(3)
    text = "".join(generator.choice(list(ALPHABET), 4000))
    x = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0))
    acts = untrained.flat("topk", 30, 3, x, STREAM).encode(x)
    fit, test = (part(text[half], (acts[half] > 0).T.tolist()) for half in (slice(2000), slice(2000, 4000)))
    table = score(fit, test, CONFIG, ALPHABET, STREAM)
    assert len(table) == 30
    f1s, nulls, found = table[["proxy_f1", "proxy_f1_null", "proxy_intruder"]].to_numpy(float).mean(0)
    assert f1s == pytest.approx(nulls, abs=0.02)
    assert found == pytest.approx(0.2, abs=0.03)


def test_every_interval_is_drawn_from_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch):
    drawn: list[Stream] = []
    monkeypatch.setattr(
        interpretability_proxy, "bootstrap_interval", lambda _, stream: drawn.append(stream) or (0.0, 0.0)
    )
    rows = {"length": [1, 2], "proxy_f1": [0.5, 0.6], "proxy_f1_null": [0.1, 0.2], "proxy_intruder": [0.2, 0.4]}
    frame = pd.concat([pd.DataFrame(rows).assign(method=method) for method in ("ours", "theirs")])
    summarize(frame, STREAM)
    assert len({stream.number for stream in drawn}) == len(drawn) == 6
