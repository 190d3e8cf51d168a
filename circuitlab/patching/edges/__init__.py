"""Single edges, and single components of what a writer adds to the stream, patched alone."""
