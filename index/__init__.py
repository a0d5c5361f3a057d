"""Embed a corpus, store the embeddings, search them, and show the results."""
