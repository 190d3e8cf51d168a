"""Circuits as values: edge masks with scores, pruning, random circuits, exchange formats. Parts only, no models."""
