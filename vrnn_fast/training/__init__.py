"""Training a model and showing what it learned: thin, on well-kept libraries, and never imported by the core.

:mod:`trainer` is a run from its configuration to a checkpoint that resumes exactly; :mod:`watch` draws its progress,
:mod:`report` its results, :mod:`compare` holds two backends against each other, :mod:`demo` does it all, and
:mod:`info` tells what the machine can do.
"""
