"""How fast a variational recurrent network trains here, against what people use instead: ``python -m bench``.

::

    shapes ──► experiments ──► contest ──► record ──► table · figures · readme · history
    peers  ──► (contender)       │
                                 └── measure · peak · memory

A new shape is a row of :mod:`bench.shapes`, a new opponent a file of :mod:`bench.peers` and a line of
:mod:`bench.experiments`, a new column one of :data:`bench.table.COLUMNS`.

A record holds what was last measured; ``python -m bench.history`` draws how a row went from commit to commit.

What a model learns, not how fast, is :mod:`bench.papers`: published experiments, run again.
"""
