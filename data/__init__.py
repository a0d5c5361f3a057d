"""Training data: row format, sources, collators, sampler, teacher embeddings, hard-negative mining and validation."""

from ..extras import require_extra


require_extra("train", "datasets")
