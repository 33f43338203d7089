"""Runs compiled PTX on the CPU: what a compiler made of a kernel, instruction by instruction, NumPy over the threads.

``run(parse(text), grid, shared, arguments)`` executes every block of a launch and returns a :class:`Report`: races in
shared and global memory, reads of what nobody wrote, shared-memory wavefronts beside their least number, barriers and
instructions. An access outside of a tensor, a deadlock and an instruction that is not known are faults with the line.

text.py (the program) -> decode.py with arithmetic.py, moves.py, warps.py (what each instruction does, by its page of
the PTX manual, ISA 9.0) -> machine.py (blocks, threads, barriers) -> memory.py (bytes, and who touched them).

What it cannot show: lanes of a warp that run apart without ``bar.warp.sync`` (a warp is one party to a race), how the
tensor cores round inside of a product (sums here are float64, rounded once), and time.
"""

from .arithmetic import Rounding
from .machine import run
from .memory import Memory
from .report import Report
from .text import Kernel, parse

__all__ = ["Kernel", "Memory", "Report", "Rounding", "parse", "run"]
