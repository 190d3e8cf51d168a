"""Scoring edges, one method a file, and selecting a circuit."""
