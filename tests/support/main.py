"""`python -m tests.support.main VERB ...`: the command line, by an interpreter that has no console script of it."""

from rhostream.cli import main

if __name__ == "__main__":
    main()
