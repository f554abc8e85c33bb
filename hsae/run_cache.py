"""Shares all that was ever run here with other clones: `python -m hsae.run_cache`, in the place of `dvc push`.

`dvc push --run-cache` sends the outputs of the commit at hand, and of earlier runs the records alone. Where outputs are
missing that a record names, metrics and curves among them, `dvc repro --pull` runs the stage again.
"""

import sys
from pathlib import Path

from dvc.repo import Repo

from hsae.experiments import dvc


def push() -> int:
    """Send the run cache and every output that it names to the default remote; how many outputs were sent.

    What `dvc gc` has taken away is left out. Raises ValueError with DVC's own words if the remote cannot be written to.
    """
    dvc("push")
    with Repo() as repo:
        repo.stage_cache.push(None)
        records = [(path.parent.name, path.name) for path in Path(repo.stage_cache.cache_dir).glob("*/*/*")]
        results = [
            repo.cloud.push(outputs, odb=odb) for odb, outputs in repo.stage_cache.get_used_objs(records).items()
        ]
    failed = sum(len(result.failed) for result in results)
    if failed:
        raise ValueError(f"{failed} outputs of earlier runs were not sent: run this again.")
    return sum(len(result.transferred) for result in results)


def main() -> None:
    """Send it, and say how much that was."""
    try:
        sent = push()
    except (ValueError, OSError) as error:
        sys.exit(f"error: run_cache: {error}")
    print(f"run_cache: what the commit needs is in the remote, and {sent} more outputs of earlier runs were sent")


if __name__ == "__main__":
    main()
