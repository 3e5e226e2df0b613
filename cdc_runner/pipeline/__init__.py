"""One pipeline in one process: initial load, change stream, apply."""
