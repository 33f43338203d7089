"""A fuzzer: cases that chance draws, each held to the law of tests/support/oracle.py; the smallest that breaks it is
printed as one line of Python. ``python -m tests.fuzz --cases 1000 --seed 1``.

Case i of a seed depends on these two numbers alone, so any machine or process may run any part of them, go on after a
failure, and be asked for one again.
"""

from math import inf

from vrnn_fast import Std

from .case import Case, case_of
from .law import Refused, Unlawful, Unrepeatable, Wrong, run
from .shrink import failure, shrink

__all__ = ["Case", "Refused", "Std", "Unlawful", "Unrepeatable", "Wrong", "case_of", "failure", "inf", "run", "shrink"]
