"""A small OpenAI-compatible server of an image-text model, with log-probabilities: `python judge_server.py FOLDER`."""

import json
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from unime.judging import answer_positions, prompt_tensors, render


model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="float32")
processor = AutoProcessor.from_pretrained(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = {"choices": [{"logprobs": {"content": [{"top_logprobs": self.top(body)}]}}]}
        encoded = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def top(self, body: dict) -> list[dict]:
        """Return the most probable first tokens of the answer."""
        content = []
        for part in body["messages"][0]["content"]:
            if part["type"] == "image_url":
                encoded = part["image_url"]["url"].partition("base64,")[2]
                part = {"type": "image", "image": Image.open(BytesIO(b64decode(encoded)))}
            content.append(part)
        images = [part["image"] for part in content if part["type"] == "image"]
        inputs = prompt_tensors(processor, render(processor, [[{"role": "user", "content": content}]]), [images])
        with torch.inference_mode():
            logits = model(**inputs, position_ids=answer_positions(model, inputs), logits_to_keep=1).logits[0, -1]
        values, tokens = logits.log_softmax(-1).topk(min(body["top_logprobs"], len(logits)))
        pairs = zip(tokens.tolist(), values.tolist(), strict=True)
        return [{"token": processor.tokenizer.decode([token]), "logprob": value} for token, value in pairs]

    def log_message(self, *args: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
