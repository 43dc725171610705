"""What a model loses without its outlier features. The one part that stands on both halves."""
