"""Encoders to evaluate: UniME, CLIP, SigLIP, SentenceTransformers, and UniME for mteb."""
