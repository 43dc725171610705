"""Capture stage: run a language model once and keep what enters its norms in a Zarr store."""
