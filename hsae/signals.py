"""How a stage's process ends before its time: with its parent, and without a traceback when it is told to."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def die_with_parent() -> None:
    """Have Linux end this process when its parent (the shell that DVC started) ends, so that no orphan trains on."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end_silently() -> None:
    """Have Ctrl-C end this process as SIGTERM does, at once and without a traceback."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this block Ctrl-C and SIGTERM raise KeyboardInterrupt; a second one ends the process at once."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = [number for number, handler in previous.items() if handler != signal.SIG_IGN]

    def interrupt(*_: object) -> None:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, previous[number])
