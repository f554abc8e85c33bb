"""Making the trials of a study: matched features of every arm, intruders, odd children, gold items and checks.

The intruder task is that of Chang et al. (2009, Reading Tea Leaves), with snippets for words: four show one decile of a
feature's activations, the fifth is text on which the feature is silent, with the highlights of a snippet that is not
shown. So nothing but what is highlighted tells the intruder.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array

from hsae.config import check, check_positive
from hsae.streams import Stream
from hsae.study.snippets import DECILES, Feature, Sampler
from hsae.study.trials import OPTIONS, Kind, Role, Session, Snippet, Trial, Trials, available

CHILDREN = "level1"
PARENTS = "level2"
SHUFFLED = "shuffled parents"
GOLD_CHARACTERS = 12  # gold items highlight one of the most frequent letters
NEAREST = 5  # latents among which an odd child is drawn: those as often active as its would-be siblings


@dataclass
class StudyConfig:
    """Section `build_study`.

    tokens: of the test split. features: of each arm. trials: intruder trials of each feature, each from another decile.
    parents: odd-child trials of each of its two arms. clarity_snippets: of a clarity trial, child_snippets: of a child.
    gold, attention: how many there are to draw from. session: what a rater gets.
    """

    tokens: int
    features: int
    trials: int
    parents: int
    snippet_chars: int
    clarity_snippets: int
    child_snippets: int
    gold: int
    attention: int
    session: Session

    def __post_init__(self) -> None:
        check_positive(self, [field.name for field in fields(self) if field.name != "session"])
        for name in ("trials", "clarity_snippets"):
            check(name, getattr(self, name), f"at most {DECILES}, the deciles", getattr(self, name) <= DECILES)
        check("snippet_chars", self.snippet_chars, "at least 8", self.snippet_chars >= 8)
        for name, value in vars(self.session).items():
            check(f"session.{name}", value, "0 or more", value >= 0)


def build(
    arms: dict[str, csc_array], edges: pd.DataFrame, text: str, config: StudyConfig, corpus: str, stream: Stream
) -> Trials:
    """All trials of a study, as `stream` draws them.

    `arms`: arm -> activations (token, feature) on `text`, "level1" among them; `edges`: a row per level-1 latent with a
    parent, columns parent, child, weight (`graph.edges`). Fewer features, parents and trials a session are taken where
    there are not so many that can be shown; an arm without any is left out. Raises ValueError if no arm is left, or the
    text is too short for gold items.
    """
    rng = stream.numpy()
    sampler = Sampler(text, config.snippet_chars, rng)
    usable = {arm: _usable(sampler, arm, acts) for arm, acts in arms.items()}
    trials = []
    for features in matched({arm: own for arm, own in usable.items() if own}, config.features).values():
        rounds = [rng.permutation(DECILES) for _ in range(-(-len(features) * config.trials // DECILES))]
        turns = np.concatenate(rounds)[: len(features) * config.trials].reshape(len(features), -1)
        for feature, deciles in zip(features, turns.tolist(), strict=True):
            trials += [_intruder(sampler, feature, decile) for decile in deciles]
            trials.append(_clarity(sampler, feature, config.clarity_snippets))
    children = {feature.index: feature for feature in usable[CHILDREN]}
    trials += _odd_children(sampler, children, edges, config)
    characters = np.array(list(text))
    letters = _frequent_letters(characters)
    trials += [_gold(sampler, characters, letters) for _ in range(config.gold)]
    trials += [_attention(sampler, characters, letters) for _ in range(config.attention)]
    counts = available(trials)
    session = Session(**{name: min(value, counts[name]) for name, value in vars(config.session).items()})
    order = rng.permutation(len(trials)).tolist()
    return Trials(corpus, stream.seed, session, tuple(replace(trials[i], id=rng.bytes(8).hex()) for i in order))


def matched(usable: dict[str, list[Feature]], n: int) -> dict[str, list[Feature]]:
    """`n` features of each arm (all where it has fewer), as alike in how often they are active as the arms allow.

    Targets are quantiles of log density where the arms overlap, from the largest of their 5th percentiles to the
    smallest of their 95th; where they do not overlap, all the same from the one to the other. Each arm's features are
    assigned to the targets one to one, with the least sum of distances. Raises ValueError if there is no arm.
    """
    check("arms", len(usable), "at least one with features that can be shown", len(usable) > 0)
    n = min(n, *(len(features) for features in usable.values()))
    logs = {arm: np.log([feature.density for feature in features]) for arm, features in usable.items()}
    ends = np.array([np.quantile(values, [0.05, 0.95]) for values in logs.values()])
    low, high = ends[:, 0].max(), ends[:, 1].min()
    pooled = np.concatenate(list(logs.values()))
    inside = pooled[(pooled >= min(low, high)) & (pooled <= max(low, high))]
    targets = np.quantile(inside, (np.arange(n) + 0.5) / n) if len(inside) else np.full(n, (low + high) / 2)
    chosen = {}
    for arm, features in usable.items():
        rows, columns = linear_sum_assignment(np.abs(logs[arm][:, None] - targets))
        chosen[arm] = [features[row] for row in rows[np.argsort(columns)]]
    return chosen


def random_directions(
    projections: Float[ndarray, "token direction"], densities: Float[ndarray, " direction"]
) -> csc_array:
    """Activations of random directions: what exceeds a threshold by which each is active on such a share of tokens."""
    n = len(projections)
    ranks = np.clip(np.round(densities * n).astype(int), 1, n - 1)
    columns = zip(projections.T, n - 1 - ranks, strict=True)
    thresholds = np.array([np.partition(column, rank)[rank] for column, rank in columns])
    return csc_array(np.maximum(projections - thresholds, 0))


def _usable(sampler: Sampler, arm: str, acts: csc_array) -> list[Feature]:
    """Features with enough to show in every decile, and with text on which they are silent."""
    features = (sampler.feature(arm, acts, index) for index in range(len(acts.indptr) - 1))
    return [
        feature
        for feature in features
        if all(len(sampler.places(tokens, OPTIONS)) == OPTIONS for tokens in feature.deciles)
        and sampler.has_silence(feature)
    ]


def _trial(kind: Kind, feature: Feature, decile: int | None, options: list[list[Snippet]], answer: int | None) -> Trial:
    shown = tuple(tuple(option) for option in options)
    return Trial("", kind, Role.main, feature.arm, feature.index, feature.density, decile, shown, answer)


def _intruder(sampler: Sampler, feature: Feature, decile: int) -> Trial:
    *shown, hidden = sampler.shown(feature, feature.deciles[decile], OPTIONS)
    answer = int(sampler.rng.integers(OPTIONS))
    # The hidden one lends its highlights: as many, and where such highlights stand.
    shown.insert(answer, sampler.unlike(feature, hidden.marks))
    return _trial(Kind.intruder, feature, decile + 1, [[snippet] for snippet in shown], answer)


def _clarity(sampler: Sampler, feature: Feature, n: int) -> Trial:
    spread = np.linspace(DECILES - 1, 0, n).round().astype(int)
    shown = [sampler.shown(feature, feature.deciles[decile], 1)[0] for decile in spread]
    return _trial(Kind.clarity, feature, None, [shown], None)


def _odd_children(
    sampler: Sampler, children: dict[int, Feature], edges: pd.DataFrame, config: StudyConfig
) -> list[Trial]:
    """Four children of a parent and a latent that is none of them; and, as a null, of parents that were dealt anew."""
    known = edges.query("child in @shown", local_dict={"shown": list(children)})
    dealt = known.assign(parent=sampler.rng.permutation(known["parent"].tolist()))
    trials = []
    for arm, frame in ((PARENTS, known), (SHUFFLED, dealt)):
        families: dict[int, list[int]] = {}
        for row in frame.sort_values(["weight", "child"], ascending=[False, True]).to_dict("records"):
            families.setdefault(row["parent"], []).append(row["child"])
        large = sorted(parent for parent, family in families.items() if len(family) >= OPTIONS - 1)
        for parent in sampler.rng.permutation(large)[: config.parents].tolist():
            own, others = families[parent][: OPTIONS - 1], set(children) - set(families[parent])
            if others:
                features = [children[index] for index in own]
                odd = children[_as_often_active(children, own, sorted(others), sampler.rng)]
                trials.append(_odd_child(sampler, arm, parent, features, odd, config.child_snippets))
    return trials


def _odd_child(
    sampler: Sampler, arm: str, parent: int, children: list[Feature], odd: Feature, n_snippets: int
) -> Trial:
    answer = int(sampler.rng.integers(OPTIONS))
    features = [children[i] for i in sampler.rng.permutation(len(children))]
    features.insert(answer, odd)
    options = [sampler.shown(feature, feature.deciles[-1], n_snippets) for feature in features]
    density = float(np.exp(np.mean(np.log([child.density for child in children]))))
    family = replace(odd, arm=arm, index=parent, density=density)
    return _trial(Kind.odd_child, family, DECILES, options, answer)


def _as_often_active(children: dict[int, Feature], own: list[int], others: list[int], rng: np.random.Generator) -> int:
    target = np.mean([np.log(children[index].density) for index in own])
    distances = [abs(np.log(children[index].density) - target) for index in others]
    return others[int(rng.choice(np.argsort(distances, kind="stable")[:NEAREST]))]


def _frequent_letters(characters: Shaped[ndarray, " token"]) -> list[str]:
    found, counts = np.unique(characters, return_counts=True)
    by_frequency = found[np.argsort(-counts, kind="stable")].tolist()
    return [character for character in by_frequency if character.isalpha()][:GOLD_CHARACTERS]


def _gold(sampler: Sampler, characters: Shaped[ndarray, " token"], letters: list[str]) -> Trial:
    """An intruder trial whose answer is plain to see: four times the same letter is highlighted."""
    letter = str(sampler.rng.choice(letters))
    on = characters == letter
    feature = sampler.feature("", csc_array(on[:, None].astype(float)), 0)
    feature = replace(feature, deciles=[np.concatenate(feature.deciles)] * DECILES)
    shown = len(sampler.places(feature.deciles[0], OPTIONS))
    enough = shown == OPTIONS and sampler.has_silence(feature)
    check("tokens", len(on), f"more: gold items need {OPTIONS} snippets with {letter!r} and one without", enough)
    trial = _intruder(sampler, feature, 0)
    return replace(trial, role=Role.gold, feature=-1, decile=None)


def _attention(sampler: Sampler, characters: Shaped[ndarray, " token"], letters: list[str]) -> Trial:
    """A trial that looks like any other and says what to answer, which the snippets would not."""
    trial = _gold(sampler, characters, letters)
    answer = int(sampler.rng.choice([option for option in range(OPTIONS) if option != trial.answer]))
    instruction = f"This one is a check that you are reading: please choose number {answer + 1}."
    return replace(trial, role=Role.attention, answer=answer, instruction=instruction)
