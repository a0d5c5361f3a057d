"""Atomic file writing, and tables cached as Arrow files."""
