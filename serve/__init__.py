"""An HTTP server of embeddings that speaks the API of OpenAI, with the images of vLLM's form of it."""
