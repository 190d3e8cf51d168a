"""Circuits: kept edges carry the output of their writer in this run, all others a replacement."""
