"""A sender's other value, heard by a set of receivers and by nobody else."""
