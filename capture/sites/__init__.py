"""Where a model is read: its norms, found by watching it run."""
