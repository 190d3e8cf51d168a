"""Scoring edges, one method a file; selecting a circuit; the main job and what it leaves behind."""
