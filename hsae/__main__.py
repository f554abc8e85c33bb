"""`python -m hsae` is `hsae`."""

from hsae.cli import main

main()
