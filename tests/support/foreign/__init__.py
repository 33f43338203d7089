"""The architectures that people use, written afresh from the description of their names, shapes and behaviour."""
