"""`python -m r1train`: the command line without the installed script."""

from r1train.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
