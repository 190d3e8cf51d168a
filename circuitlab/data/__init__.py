"""Tasks, pairs and batches, independent of any model."""
