"""How fast a variational recurrent network trains here, against what people use instead: ``python -m bench``.

A new shape is a row of :data:`bench.shapes.SHAPES`, a new opponent one of :data:`bench.contenders.CONTENDERS`, a new
column one of :data:`bench.table.COLUMNS`.
"""
