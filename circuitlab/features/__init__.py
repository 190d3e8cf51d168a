"""Sparse autoencoders: loaded from local folders, attached to a model, read, swept and ranked."""
