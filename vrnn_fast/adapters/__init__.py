"""Our models in the clothes of other libraries, each a small module that needs that library: ``gluonts``, ``pyod``,
``hub``. Lightning needs none: examples/with_lightning.py."""
