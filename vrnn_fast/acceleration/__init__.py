"""Somebody's own model on our executors: mirrored, proven by running, faithful to the last deviation."""
