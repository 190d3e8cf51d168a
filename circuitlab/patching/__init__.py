"""The patching engine: runs that differ from a recorded one at chosen places, packed into few forward passes."""
