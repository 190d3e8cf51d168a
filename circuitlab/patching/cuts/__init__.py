"""Circuits that differ from the whole model by cut edges: for searches that cut edge after edge."""
