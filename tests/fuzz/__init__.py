"""A fuzzer: cases that chance draws, each held to the law of tests/support/oracle.py; the smallest that breaks it is
printed as one line of Python. ``python -m tests.fuzz --cases 1000 --seed 1``.

Case i of a seed depends on these two numbers alone, so any machine or process may run any part of them, go on after a
failure, and be asked for one again.
"""

from tests.fuzz.case import Case, case_of
from tests.fuzz.law import Refused, Unlawful, Unrepeatable, Wrong, run
from tests.fuzz.shrink import failure, shrink
from vrnn_fast import Std

__all__ = ["Case", "Refused", "Std", "Unlawful", "Unrepeatable", "Wrong", "case_of", "failure", "run", "shrink"]
