"""The run: the main job, its record, and the folder that it leaves behind."""
