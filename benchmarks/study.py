"""Response times of the study's web app: 24 raters at once, 50 answers each, to one server that syncs every answer.

With a pause of a second before each answer, which is several times shorter than a person's; and with none, where the
figures hold the raters' own cost as well: they are threads of this process, on the same cores. Argument: where to
write the result.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

from benchmarks.training import machine
from hsae.files import write_json
from tests.study import Quick, process, study_at, write

RATERS, PAUSES = 24, {"a second": 1.0, "none": 0.0}


def measure(pause: float) -> dict[str, float]:
    """Milliseconds per request, and how many answers were stored."""
    with tempfile.TemporaryDirectory() as folder:
        trials, database = write(Path(folder)), Path(folder) / "study.sqlite"
        with process(trials, database) as (_, url):
            raters = [Quick(url) for _ in range(RATERS)]
            arguments = [(pause, pause * i / RATERS) for i in range(RATERS)]
            work = [Thread(target=r.rate, args=args) for r, args in zip(raters, arguments, strict=True)]
            start = time.perf_counter()
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
            seconds = time.perf_counter() - start
        stored = len(study_at(trials, database).responses)
    times = [taken for rater in raters for taken in rater.times]
    return {
        "requests": len(times),
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 2),
        "max_ms": round(max(times), 2),
        "seconds": round(seconds, 1),
        "asked": 50 * RATERS,
        "stored": stored,
    }


def main(result: str) -> None:
    """Measure and write."""
    rows = {name: measure(pause) for name, pause in PAUSES.items()}
    for name, row in rows.items():
        print(name, row)
    write_json(Path(result), {"machine": machine(), "raters": RATERS, "pauses": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
