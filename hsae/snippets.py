"""Where snippets of a text stand: around the token that they are shown for, and apart from each other."""

from jaxtyping import Int
from numpy import ndarray

PEAK = 0.75  # where in a snippet its token stands: what comes before explains an activation, not what follows


def apart(tokens: Int[ndarray, " token"], n: int, width: int) -> list[int]:
    """The first `n` of some tokens (all where there are fewer) of which no two are nearer than `width`."""
    found: list[int] = []
    for token in tokens.tolist():
        if len(found) == n:
            break
        if all(abs(token - other) >= width for other in found):
            found.append(token)
    return found


def begin(token: int, width: int, n: int) -> int:
    """Where a snippet of `width` tokens for one of `n` begins: whole, also at either end of the text."""
    return min(max(token - int(width * PEAK), 0), n - width)
