"""The model of a store, run again with what its sublayers read quantised: the proof of what the store alone says."""
