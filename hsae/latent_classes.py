"""What class of characters a latent stands for: the character taxonomy as labels of latents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer
from numpy import ndarray
from scipy.sparse import csr_array

from hsae.config import check
from hsae.labels import taxonomy

LEVELS = ["kind", "sort", "case", "character"]
LABELLINGS = [f"{position}_{level}" for position in ("current", "next") for level in LEVELS]
NO_CLASS = -1


@dataclass(frozen=True)
class Text:
    """The tokens that activations belong to, and what follows each of them, as indices into a vocabulary."""

    current: Int[ndarray, " token"]
    following: Int[ndarray, " token"]
    vocabulary: Sequence[str]

    @classmethod
    def at(
        cls, tokens: Integer[ndarray, " corpus"], offsets: Int[ndarray, " token"], vocabulary: Sequence[str]
    ) -> "Text":
        """The tokens at some offsets of a corpus, and of the vocabulary nothing but what stands there."""
        used, index = np.unique(np.stack([tokens[offsets], tokens[offsets + 1]]), return_inverse=True)
        current, following = index.reshape(2, -1)
        return cls(current, following, [vocabulary[int(token)] for token in used])

    def part(self, rows: slice) -> "Text":
        """Some of the tokens, with the vocabulary of all."""
        return Text(self.current[rows], self.following[rows], self.vocabulary)

    def shifted(self, shift: int) -> "Text":
        """The tokens moved along the text, in a circle."""
        return Text(np.roll(self.current, shift), np.roll(self.following, shift), self.vocabulary)

    def classes(self, level: str) -> tuple[list[str], Int[ndarray, " character"]]:
        """Names of the classes of a level of the taxonomy, sorted, and the class of each token of the vocabulary."""
        names, class_of = np.unique(taxonomy(self.vocabulary)[level], return_inverse=True)
        return names.tolist(), class_of


def latent_classes(acts: csr_array, text: Text, by: str, min_share: float) -> dict[str, Int[ndarray, " latent"]]:
    """For each of LABELLINGS, the class of every latent, or -1: the class holds too little of the latent's activation.

    `acts` (token, latent). s(c) is the share of a latent's activation, summed over all tokens, that falls on tokens of
    class c (or followed by one), and p(c) is the class's share of all tokens. A latent gets the class of the largest

    - s(c) log(s(c) / p(c)), by `information`: the class that adds most to the divergence of s from p, which is what the
      latent's activity tells of the character. The greatest lift s / p alone would choose the rarest character that a
      latent ever met.
    - s(c), by `share`: it prefers classes that are frequent anyway

    if s(c) of that class is at least `min_share`; with 0 every latent that is active at all has a class. Raises
    ValueError for another `by`.
    """
    check("by", by, "information or share", by in ("information", "share"))
    return {name: _strongest(mass, p, by, min_share) for name, mass, p in _by_class(acts, text)}


def held_out_shares(
    chosen: tuple[csr_array, Text], scored: tuple[csr_array, Text]
) -> dict[str, Float[ndarray, " latent"]]:
    """For each of LABELLINGS, the share of every latent's activation on `scored` that is on its class by `chosen`.

    Both are activations (token, latent) and their text, with one vocabulary. The class is that of `latent_classes`, by
    information; the largest of many shares would be flattered on the tokens that chose it. 0 for a latent that is
    silent on either.
    """
    classes, shares = latent_classes(*chosen, "information", 0.0), {}
    for name, mass, _ in _by_class(*scored):
        own, total = mass[np.arange(len(mass)), classes[name]], mass.sum(1)
        shares[name] = np.where(classes[name] != NO_CLASS, own, 0) / np.where(total > 0, total, 1)
    return shares


def _by_class(
    acts: csr_array, text: Text
) -> Iterator[tuple[str, Float[ndarray, "latent class"], Float[ndarray, " class"]]]:
    """Of each of LABELLINGS: every latent's activation, summed over each class's tokens, and the classes' shares."""
    for position, characters in (("current", text.current), ("next", text.following)):
        mass = _mass(acts, characters, len(text.vocabulary))
        frequency = np.bincount(characters, minlength=len(text.vocabulary)) / len(characters)
        for level in LEVELS:
            class_of = text.classes(level)[1]
            members = csr_array((np.ones(len(class_of)), (np.arange(len(class_of)), class_of)))
            yield f"{position}_{level}", mass @ members, frequency @ members


def _mass(acts: csr_array, characters: Int[ndarray, " token"], n_characters: int) -> Float[ndarray, "latent character"]:
    """Every latent's activation, summed over the tokens of each character."""
    n_tokens = len(characters)
    shape = n_tokens, n_characters
    one_hot = csr_array((np.ones(n_tokens), (np.arange(n_tokens), characters)), shape=shape)
    return (acts.T @ one_hot).toarray().astype(float)


def _strongest(
    mass: Float[ndarray, "latent class"], p: Float[ndarray, " class"], by: str, min_share: float
) -> Int[ndarray, " latent"]:
    total = mass.sum(1, keepdims=True)
    share = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    # Where a share is 0 so is its term; where it is not, its class occurs.
    lift = np.divide(share, p, out=np.ones_like(share), where=share > 0)
    best = (share * np.log(lift) if by == "information" else share).argmax(1)
    selective = (share[np.arange(len(share)), best] >= min_share) & (total[:, 0] > 0)
    return np.where(selective, best, NO_CLASS)
