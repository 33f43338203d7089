"""What people run today instead, a file for each kind."""

from .eager import EagerVRNN

__all__ = ["EagerVRNN"]
