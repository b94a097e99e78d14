"""Where files are written: the output folder, its lock and work folder, and what file systems differ in."""
