"""Paired batches become a run."""
