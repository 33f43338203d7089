"""``python -m bench.gpu``: the first minutes on a GPU, each part in a process of its own with a time limit.

Read setting.py (what is asked for), parts.py (what is done, in order), children.py (how a part is run, and cut),
record.py (what is left of it), then primitives.py, parity.py, sanitizer.py and times.py. ``--emulate`` rehearses all of
it on a CPU.
"""
