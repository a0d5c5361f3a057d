"""Files that are written atomically, and tables that are cached as Arrow files."""
