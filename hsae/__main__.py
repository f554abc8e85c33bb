"""`python -m hsae` is `hsae`."""

from hsae.cli import main

if __name__ == "__main__":
    main()
