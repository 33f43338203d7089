"""Somebody's own model on our backends: mirrored, proven by running, faithful to the last deviation."""
