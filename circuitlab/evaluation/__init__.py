"""Evaluation of a circuit on prompts that were not used to find it."""
