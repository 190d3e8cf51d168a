"""Circuit files: a module a format, and `formats`, which knows the format of a file by its name and content."""
