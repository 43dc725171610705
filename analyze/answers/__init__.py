"""What a store is asked: each file answers one question from the peaks, or in one pass over the activations."""
