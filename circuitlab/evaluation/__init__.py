"""What a circuit is worth on prompts that were not used to find it."""
