"""Models whose circuit is known: programs written down in a few lines, compiled into the weights of a transformer."""
