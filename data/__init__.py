"""Training data: row format, sources, collators, sampler, teacher embeddings, hard-negative mining and validation."""
