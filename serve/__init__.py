"""An HTTP server of embeddings that speaks the API of OpenAI, with the pictures of vLLM's form of it."""
