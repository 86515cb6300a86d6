"""A run of the model, followed: what it was called with, every operation, where it came from."""
