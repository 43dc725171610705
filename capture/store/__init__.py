"""The format on disk: its names and layout, chunks and shards, creating, writing and verifying a store. No torch."""
