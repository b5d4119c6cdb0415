"""`python -m planish`: the command line."""

from planish.cli.main import run

run()
