"""Embed a corpus, keep its vectors, search them and look at what was found."""
