"""An HTTP server for embeddings that implements OpenAI's API, with image input in vLLM's format."""

from ..extras import require_extra


require_extra("serve", "fastapi", "httpx2", "prometheus_client", "uvicorn")
