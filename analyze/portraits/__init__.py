"""Pictures of single features: where one is extreme, which are the strongest, and how one persists in the stream."""
