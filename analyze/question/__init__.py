"""What is asked: which values count, when a feature is an outlier, and the arithmetic of thresholds."""
