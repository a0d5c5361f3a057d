"""Encoders to evaluate: UniME, CLIP, SigLIP and SentenceTransformers, and UniME for mteb."""
