"""A model with its tokenizer, from the hub, a folder, a file, or of random weights."""
