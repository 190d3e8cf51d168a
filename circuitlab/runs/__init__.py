"""The run: the main job, its record, and its folder."""
