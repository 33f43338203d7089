"""Executors with a fault each, which a trial must find: modules with the ``run`` of the reference, spoiled."""
