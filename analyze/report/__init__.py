"""A page that answers threshold questions by itself: one HTML file, no network."""
