"""The stages of dvc.yaml, one module each."""

import sys

from hsae.signals import die_with_parent, end_silently

if sys.argv[0] == "-m":  # `python -m stages.<name>`: from now on, for a stage's imports take seconds
    die_with_parent()
    end_silently()
