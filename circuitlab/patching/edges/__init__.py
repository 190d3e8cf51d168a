"""Single edges, and single components of what a writer says, patched alone."""
