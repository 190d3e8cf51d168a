"""Tasks, pairs and batches: what is asked of a model, before any model is involved."""
