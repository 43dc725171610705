"""Checkpoints of one training run: how outliers come to be, step by step."""
