"""What fewer bits do to activations: where a number format overflows, and what a quantiser loses."""
