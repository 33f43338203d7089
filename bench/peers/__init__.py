"""What people run today instead, a file for each kind."""

from bench.peers.eager import EagerVRNN

__all__ = ["EagerVRNN"]
