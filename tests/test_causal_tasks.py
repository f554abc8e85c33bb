import numpy as np
import pytest
import torch

from hsae import causal_tasks
from hsae.causal_tasks import Rule, draw, keep, report, rules, samples
from hsae.labels import MARKUP
from hsae.samples import Record, shared
from hsae.streams import Stream

STREAM = Stream(0, "test")

PLAY = (
    "A play of much.\n\nHAMLET:\nWhat news? Quite, good. And so, my quill, we [Exit GHOST] quit.\n\n"
    "First Lord:\nHe went! He [] cried (at once), sir. 3 men.\n\nNo colon here\nEnd. "
)


def by_name(text: str) -> tuple[dict[str, Rule], np.ndarray, str]:
    alphabet = "".join(sorted(set(text)))
    tokens = np.array([alphabet.index(c) for c in text], dtype=np.uint8)
    return {rule.name: rule for rule in rules(tokens, alphabet, len(text))}, tokens, alphabet


@pytest.fixture
def play() -> tuple[dict[str, Rule], np.ndarray, str]:
    return by_name(PLAY)


def shown(rule: Rule, alphabet: str) -> list[tuple[str, str, str]]:
    """Last three characters of every prompt, the character that is replaced, and what by."""
    return [
        (PLAY[end - 2 : end + 1], PLAY[changed], alphabet[token])
        for end, changed, token in zip(*rule.candidates, strict=True)
    ]


def characters(mask: np.ndarray, alphabet: str) -> str:
    return "".join(c for c, own in zip(alphabet, mask, strict=True) if own)


def test_sentences_end_in_a_mark_and_a_blank(play):
    found, _, alphabet = play
    rule = found["sentence_case"]
    assert shown(rule, alphabet) == [
        ("s? ", "?", ","), ("d. ", ".", ","), ("t! ", "!", ","), ("r. ", ".", ","), ("d. ", ".", ","),
    ]  # fmt: skip
    assert characters(rule.targets, alphabet) == "".join(c for c in alphabet if c.isupper())
    assert characters(rule.foils, alphabet) == "".join(c for c in alphabet if c.islower())


def test_a_speakers_name_is_followed_by_a_colon(play):
    found, _, alphabet = play
    rule = found["speaker_colon"]
    assert shown(rule, alphabet) == [("LET", "\n", " "), ("ord", "\n", " ")]
    ends, changed, _ = rule.candidates
    assert [PLAY[c : e + 2] for c, e in zip(changed, ends, strict=True)] == ["\n\nHAMLET:", "\n\nFirst Lord:"]
    assert characters(rule.targets, alphabet) == ":"
    assert not (rule.targets & rule.foils).any()
    assert (rule.targets | rule.foils).all()


def test_capitals_of_names_go_on(play):
    found, _, alphabet = play
    # H A M L E T: after the second letter and before the last.
    assert shown(found["speaker_case"], alphabet) == [
        ("\nHA", "A", "a"),
        ("HAM", "M", "m"),
        ("AML", "L", "l"),
        ("MLE", "E", "e"),
    ]


def test_brackets_close_what_they_opened_unless_they_are_empty(play):
    found, _, alphabet = play
    assert shown(found["bracket_square"], alphabet) == [("OST", "[", " ")]
    assert shown(found["bracket_round"], alphabet) == [("nce", "(", " ")]
    assert "bracket_curly" not in found


def test_q_is_followed_by_u(play):
    found, _, alphabet = play
    assert shown(found["q_u"], alphabet) == [("y q", "q", "t"), ("] q", "q", "t")]


WIKI = (
    "<title>Cat</title>\n==Life==\n{{stub}} A [[cat|Cats]] of [x] &quot;q&quot;.\n===At home===\n"
    "[[Image:b|the [[Nile]]]]"
)


def test_what_ends_wiki_markup_follows_unless_its_first_character_is_a_blank():
    found, _, alphabet = by_name(WIKI)
    expected = {
        "link_end": ("]", ["[[cat|Cats]", "[[Nile]"]),
        "template_end": ("}", ["{{stub}"]),
        "tag_end": (">", ["<title", "</title"]),
        "entity_end": (";", ["&quot", "&quot"]),
        "heading_end": ("=", ["==Life=", "===At home=="]),
    }
    assert {name for name in found if name.endswith("_end")} == set(expected) == {f"{kind}_end" for kind in MARKUP}
    for name, (target, prompts) in expected.items():
        rule = found[name]
        ends, changed, replacements = rule.candidates
        assert [WIKI[start : end + 1] for start, end in zip(changed, ends, strict=True)] == prompts
        assert {WIKI[end + 1] for end in ends} == {target} == set(characters(rule.targets, alphabet))
        assert (rule.targets != rule.foils).all()
        assert {alphabet[token] for token in replacements} == {" "}


def test_pairs_of_wiki_text_differ_in_the_character_that_opens():
    found, tokens, alphabet = by_name(WIKI)
    task = draw(found["link_end"], tokens, (0, len(tokens)), 12, STREAM)
    records = {record["prompt"]: record for record in task.records(alphabet)}
    assert set(records) == {" [[cat|Cats]", "|the [[Nile]"}
    for prompt, record in records.items():
        assert prompt[record["position"]] == "["
        assert record["replacement"] == " "
        assert WIKI[record["offset"] + len(prompt)] == "]"


def test_text_of_letters_and_blanks_has_the_tasks_of_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causal_tasks, "OFTEN", 3)
    found, _, _ = by_name("the the the that that that quit quit quit abe abe abc " * 3)
    assert set(found) == {"word_end", "q_u"}


def test_beginnings_of_words_are_told_apart_by_what_follows_them_in_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causal_tasks, "OFTEN", 3)
    # "the" ends a word each time, "tha" goes on each time; "to" is seen too seldom.
    found, tokens, alphabet = by_name("the the the that that that to the\n" * 2)
    ends, changed, replacements = found["word_end"].candidates
    text = "".join(alphabet[token] for token in tokens)
    assert {text[end - 2 : end + 1] for end in ends} == {"the"}
    assert len(ends) == 8
    assert (changed == ends).all()
    assert {alphabet[token] for token in replacements} == {"a"}
    # "th": a vowel follows always. No beginning of two letters with the same first one goes on with a consonant.
    assert "next_vowel" not in found


def test_only_the_training_split_says_what_follows():
    text = "the that " * 60
    alphabet = "".join(sorted(set(text)))
    tokens = np.array([alphabet.index(c) for c in text], dtype=np.uint8)
    assert "word_end" in {rule.name for rule in rules(tokens, alphabet, len(text))}
    assert "word_end" not in {rule.name for rule in rules(tokens, alphabet, len(text) // 2)}


def test_prompts_lie_within_their_split_and_differ_in_one_character(play):
    found, tokens, alphabet = play
    task = draw(found["sentence_case"], tokens, (10, 60), 12, STREAM)
    assert len(task) == 2
    assert task.clean.shape == task.corrupt.shape == (2, 12)
    for clean, corrupt, position, end in zip(task.clean, task.corrupt, task.changed, task.ends, strict=True):
        assert "".join(alphabet[t] for t in clean.tolist()) == PLAY[end - 11 : end + 1]
        assert (clean != corrupt).nonzero().flatten().tolist() == [int(position)]
        assert end - 11 >= 10
        assert end < 60
    assert len(draw(found["bracket_square"], tokens, (0, len(tokens)), 5, STREAM)) == 0, "its bracket is not in it"
    again = draw(found["sentence_case"], tokens, (10, 60), 12, STREAM)
    assert torch.equal(task.clean, again.clean)
    places = {int(end) - i for end in task.ends for i in range(12)}
    assert {*task.places.tolist()} == places


def test_records_say_where_a_pair_comes_from(play):
    found, tokens, alphabet = play
    for record in draw(found["speaker_colon"], tokens, (0, len(tokens)), 14, STREAM).records(alphabet):
        assert PLAY[record["offset"] : record["offset"] + 14] == record["prompt"]
        assert record["prompt"][record["position"]] == "\n"
        assert record["replacement"] == " "


def test_the_file_of_tasks_names_the_characters_that_should_follow(play):
    found, tokens, alphabet = play
    task = draw(found["sentence_case"], tokens, (0, len(tokens)), 12, STREAM)
    content = causal_tasks.records({"sentence_case": {"discovery": task, "test": task}}, alphabet)["sentence_case"]
    assert content["targets"] == [c for c in alphabet if c.isupper()]
    assert content["test"] == content["discovery"] == task.records(alphabet)


def test_pairs_from_one_piece_of_the_corpus_are_one_cluster(play):
    found, tokens, _ = play
    task = draw(found["sentence_case"], tokens, (0, len(tokens)), 12, STREAM)
    assert task.clusters.tolist() == [0] * len(task)


def test_nodes_are_chosen_and_measured_on_characters_that_no_two_prompts_share(play):
    found, tokens, _ = play
    splits = {"discovery": "val", "test": "test"}

    def records(*bounds: tuple[int, int]) -> list[Record]:
        own = {
            split: draw(found["sentence_case"], tokens, bound, 12, STREAM.of(split))
            for split, bound in zip(splits, bounds, strict=True)
        }
        assert all(map(len, own.values()))
        return samples({"sentence_case": own}, splits, np.array([7]), STREAM)

    chosen, scored = records((0, 50), (50, len(tokens)))
    assert (chosen["split"], scored["split"]) == ("val", "test")
    assert chosen["runs"][0][0] == 7, "the latents' tokens too"
    assert chosen["runs"][-1][1] < 50 <= scored["runs"][0][0]
    assert shared([chosen, scored]) == []
    one_split = [{**row, "split": "test"} for row in records((0, 60), (0, len(tokens)))]
    assert shared(one_split) == ["nodes"]
    assert samples({}, splits, np.array([], dtype=int), STREAM) == []


def test_pairs_are_kept_where_the_model_is_right_and_the_others_are_counted(play):
    found, tokens, alphabet = play
    rule = found["sentence_case"]
    upper, lower = alphabet.index("A"), alphabet.index("a")

    def model(prompts: torch.Tensor) -> torch.Tensor:
        """Wrong after "!"; sees no difference after "?"."""
        logits = torch.zeros(len(prompts), len(alphabet))
        marks = [alphabet[t] for t in prompts[:, -2].tolist()]
        questions = ["news" in "".join(alphabet[t] for t in prompt) for prompt in prompts.tolist()]
        for i, (mark, question) in enumerate(zip(marks, questions, strict=True)):
            logits[i, upper if question or mark == "." else lower] = 9.0
        return logits

    task, kept = keep(rule, tokens, (0, len(tokens)), 12, 10, STREAM, model)
    # One character of a class has 9 nats, all others have 0; the two pairs that are not kept have no effect at all.
    n, m = int(rule.targets.sum()), int(rule.foils.sum())
    nats = np.log(np.exp(9) + n - 1) - np.log(m) - np.log(n) + np.log(np.exp(9) + m - 1)
    counts = {"found": 5, "asked": 5, "clean_wrong": 1, "corrupt_wrong": 1, "surplus": 0, "kept": 3}
    effect, asked = pytest.approx(nats, rel=1e-5), pytest.approx(3 * nats / 5, rel=1e-5)
    assert vars(kept) == {**counts, "effect": effect, "effect_asked": asked}
    assert len(task) == 3
    task, kept = keep(rule, tokens, (0, len(tokens)), 12, 2, STREAM, model)
    assert len(task) == kept.kept == 2
    assert kept.asked == kept.kept + kept.surplus + kept.clean_wrong + kept.corrupt_wrong
    assert report({"a": {"test": kept}})["a"]["test"]["kept"] == 2


def test_log_odds_of_two_classes(play):
    found, tokens, alphabet = play
    task = draw(found["speaker_colon"], tokens, (0, len(tokens)), 14, STREAM)
    logits = torch.randn(3, len(alphabet), generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[:, alphabet.index(":")]
    torch.testing.assert_close(task.metric(logits), (p / (1 - p)).log())
