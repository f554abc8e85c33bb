"""Work that falls into independent parts, done by several processes with one thread each.

Where matrices are small, a second thread waits more than it works; a second process does not.
"""

import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

from hsae.config import check
from hsae.progress import Progress
from hsae.run import compute_with
from hsae.signals import die_with_parent, end_silently

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def workers(label: str, n: int) -> Iterator[Callable[..., Iterable]]:
    """A `map` over `n` processes: results come in the order of the parts, whichever is ready first.

    Function, parts and results must be picklable. A worker computes on the CPU and shows nothing; the count of finished
    parts stands under `label`. What a part raises is raised by its result, and ends all others; so does whatever else
    ends the block. Raises ChildProcessError if a worker is lost.
    """

    def each(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        parts = list(parts)
        results = pool.map(function, parts)  # all begin, now
        return _counted(label, parts, results)

    # Not forked: the parent's threads would be missing, and their locks held.
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _begin) as pool:
        try:
            yield each
        except BaseException as error:
            for worker in multiprocessing.active_children():
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError("a worker was lost (killed, or out of memory): run it again.") from error
            raise


def share(text: str) -> slice:
    """Which of a list of parts `i/n` means: every n-th from the i-th on, counted from 1.

    The list must not depend on what is finished, so that clones agree on it without a word. A sweep's seeds stand one
    after the other: where n divides their number, all conditions of a seed, which share stages, are in one part. Raises
    ValueError, in one line, for anything else.
    """
    match = re.fullmatch("([0-9]+)/([0-9]+)", text)
    part, parts = map(int, match.groups()) if match else (0, 0)
    check("share", text, "i/n with i in 1..n", 1 <= part <= parts)
    return slice(part - 1, None, parts)


def _counted(label: str, parts: list[Part], results: Iterator[Result]) -> Iterator[Result]:
    with Progress(label, len(parts)) as bar:
        for part, result in zip(parts, results, strict=True):
            bar.advance(1, str(part))
            yield result


def _begin() -> None:
    """Get a worker ready: to end when it should, to be silent, to compute as a stage does with one thread."""
    die_with_parent()
    end_silently()
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():  # it was gone before it could be asked for its end
        os._exit(os.EX_TEMPFAIL)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the end)
    threadpool_limits(1)  # scikit-learn's
    compute_with(1)
