"""Embed texts by the client libraries that people use, in an environment of their own: see test_client_libraries.py.

    .venv-clients/bin/python tests/serve/client_libraries.py http://127.0.0.1:8000/v1

The embeddings of each library are printed as JSON, under the name of the call.
"""

import asyncio
import json
import sys
from collections.abc import Callable

import litellm
import openai
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding


MODEL, KEY = "unime-tiny", "key"
TEXTS = ["a cat", "Здравствуйте", "a line\nand another", "a " * 150]
DIMENSIONS = 48


def by_openai(address: str) -> dict[str, list]:
    """Embed by OpenAI's own client, which asks for base64 by default, and describe the model."""
    client = openai.OpenAI(base_url=address, api_key=KEY)
    asynchronous = openai.AsyncOpenAI(base_url=address, api_key=KEY)

    def vectors(answer: openai.types.CreateEmbeddingResponse) -> list:
        return [entry.embedding for entry in answer.data]

    described = client.models.retrieve(client.models.list().data[0].id)
    return {
        "default": vectors(client.embeddings.create(model=described.id, input=TEXTS)),
        "float": vectors(client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")),
        "one text": vectors(client.embeddings.create(model=MODEL, input=TEXTS[0])),
        "truncated": vectors(client.embeddings.create(model=MODEL, input=TEXTS, dimensions=DIMENSIONS)),
        "asynchronous": vectors(asyncio.run(asynchronous.embeddings.create(model=MODEL, input=TEXTS))),
        "dimensions": [described.model_extra["dimensions"]],
    }


def by_litellm(address: str) -> dict[str, list]:
    """Embed by LiteLLM, which sends null for what is not given, under its names for OpenAI-compatible servers."""

    def embed(provider: str, texts: list[str], **options: object) -> list:
        answer = litellm.embedding(f"{provider}/{MODEL}", texts, api_base=address, api_key=KEY, **options)
        return [entry["embedding"] for entry in answer.data]

    return {
        "default": embed("openai", TEXTS),
        "null": embed("openai", TEXTS, encoding_format=None),
        "float": embed("openai", TEXTS, encoding_format="float"),
        "one text": embed("openai", TEXTS[:1]),
        "truncated": embed("openai", TEXTS, dimensions=DIMENSIONS, allowed_openai_params=["dimensions"]),
        "as vLLM": embed("hosted_vllm", TEXTS),
    }


def by_langchain(address: str) -> dict[str, list]:
    """Embed by LangChain, which sends texts rather than token ids with `check_embedding_ctx_length=False`."""

    def embeddings(**options: object) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(
            model=MODEL, base_url=address, api_key=KEY, check_embedding_ctx_length=False, **options
        )

    return {
        "default": embeddings().embed_documents(TEXTS),
        "one text": [embeddings().embed_query(TEXTS[0])],
        "truncated": embeddings(dimensions=DIMENSIONS).embed_documents(TEXTS),
        "asynchronous": asyncio.run(embeddings().aembed_documents(TEXTS)),
        "small batches": embeddings(chunk_size=2).embed_documents(TEXTS),
    }


def by_llama_index(address: str) -> dict[str, list]:
    """Embed by LlamaIndex, whose class for OpenAI-compatible servers takes any model name."""

    def embedding(**options: object) -> OpenAILikeEmbedding:
        return OpenAILikeEmbedding(model_name=MODEL, api_base=address, api_key=KEY, **options)

    return {
        "default": embedding().get_text_embedding_batch(TEXTS),
        "one text": [embedding().get_query_embedding(TEXTS[0])],
        "truncated": embedding(dimensions=DIMENSIONS).get_text_embedding_batch(TEXTS),
        "asynchronous": asyncio.run(embedding().aget_text_embedding_batch(TEXTS)),
        "small batches": embedding(embed_batch_size=2).get_text_embedding_batch(TEXTS),
    }


LIBRARIES: dict[str, Callable[[str], dict[str, list]]] = {
    "openai": by_openai,
    "litellm": by_litellm,
    "langchain": by_langchain,
    "llama-index": by_llama_index,
}

if __name__ == "__main__":
    print(json.dumps({name: embed(sys.argv[1]) for name, embed in LIBRARIES.items()}))
