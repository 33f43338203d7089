"""A variational recurrent cell without a tensor in sight: its structure, the stages it runs, and the cut in three."""
