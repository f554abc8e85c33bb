"""The stages of dvc.yaml, one module each."""

import sys


def _has_what_it_needs():
    """Whether this is the project's Python: if no environment is active, DVC runs the system's, which may be old."""
    if sys.version_info < (3, 11):  # noqa: UP036 (that is the question)
        return False
    from importlib.util import find_spec

    return bool(find_spec("torch") and find_spec("omegaconf"))


if not _has_what_it_needs():
    sys.exit(
        "error: " + sys.executable + " is not the project's Python: run `. .venv/bin/activate` first, or `make repro`"
    )

from hsae.signals import die_with_parent, end_silently  # noqa: E402

if sys.argv[0] == "-m":  # `python -m stages.<name>`: from now on, for a stage's imports take seconds
    die_with_parent()
    end_silently()
