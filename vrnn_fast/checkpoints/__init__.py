"""Files of parameters: our own, and those of other implementations as a :class:`vrnn_fast.VRNN`."""
