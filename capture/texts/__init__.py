"""What the model reads: sources of documents, documents as tokens, tokens as blocks."""
