"""Data: rows, sources, collators and the OpenMoji world."""
