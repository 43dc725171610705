"""Peaks of a view: looked up in the store, streamed from its activations, kept in the cache."""
