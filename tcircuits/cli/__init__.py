"""The command line: one thin command a verb. Each parses, calls the library and writes; nothing is computed here.

Wrong input ends with one message and exit code 2, before anything expensive is run.
"""

from tcircuits.cli.entry import main

__all__ = ["main"]
