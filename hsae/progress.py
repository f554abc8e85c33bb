"""A progress bar on a terminal, a plain line now and then elsewhere (logs, DVC queues)."""

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Context manager that counts up to `total` under `label`, from `done` on.

    On a terminal this is a tqdm bar; elsewhere a line is printed at every tenth of the way.
    """

    LINES = 10

    def __init__(self, label: str, total: int, done: int = 0):
        self.label = label
        self.total = total
        self.done = done
        self._bar = tqdm(total=total, initial=done, desc=label, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.close()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more; `note` (a loss, say) is shown beside the count."""
        tenth = self.done * self.LINES // max(self.total, 1)
        self.done += n
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif self.done * self.LINES // max(self.total, 1) > tenth:
            print(f"{self.label}: {self.done}/{self.total} {note}".rstrip(), flush=True)
