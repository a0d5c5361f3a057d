"""Export of the text path as an ONNX graph: `input_ids` and `attention_mask` in, `sentence_embedding` out."""

import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from ..checkpoint import PROMPTS
from ..extras import require_extra
from ..modeling_unime import UniMEModel
from ..native_form import complete_template
from ..pooling_unime import pool
from ..processing_unime import Item, to_item_dict, to_messages
from .plain import new_folder


require_extra("export", "onnx", "onnxruntime", "onnxscript")

import onnxruntime  # noqa: E402
from onnxruntime.capi.onnxruntime_pybind11_state import (  # noqa: E402
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
)


MAX_DIFFERENCE = 1e-4  # between a component of an exported embedding and the same component from torch

# Every export is checked with these: very different lengths, single items and batches, padding on either side.
CHECK_BATCHES: list[list[Item]] = [
    ["a"],
    [
        "a cat",
        "a pizza on a red tile to the left of a cat " * 6,
        {"text": "", "instruction": "Name it"},
    ],
    [{"text": "two dogs", "instruction": PROMPTS["text_to_image"]}] * 5,
]

CARD = """\
# Text path of a UniME checkpoint

`model.onnx` embeds texts ({dimensions} dimensions, float32) as the original checkpoint does; images need the original
checkpoint. The chat template contains the prompt; an instruction is the system message.

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")
conversations = [[{{"role": "user", "content": text}}] for text in ["a slice of pizza", "two dogs"]]
inputs = tokenizer.apply_chat_template(conversations, return_dict=True, padding=True, return_tensors="np")
(embeddings,) = session.run(["sentence_embedding"], dict(inputs))
```
"""


class TextPath(nn.Module):
    """The language model of a UniME model with its pooling.

    Args:
        model ([`UniMEModel`]): The model.
    """

    def __init__(self, model: UniMEModel):
        super().__init__()
        self.decoder, self.pooling = model.backbone.get_decoder(), model.config.pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors of shape `(batch, dimensions)` for token ids of shape `(batch, tokens)`."""
        output = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return pool(output.last_hidden_state, attention_mask, pooling=self.pooling)


def export_onnx(model: UniMEModel, processor: ProcessorMixin, directory: str | Path) -> float:
    """Export the text path with its tokenizer and template, and compare its embeddings with the model's.

    Args:
        model ([`UniMEModel`]): The model, in float32 and on the CPU.
        processor (`ProcessorMixin`): Its processor, with UniME's chat template.
        directory (`str` or `Path`): Output folder, new or empty. After an error it is removed.

    Returns:
        `float`: The largest absolute difference between embeddings from ONNX Runtime and from torch.

    Raises:
        ValueError: The folder is not empty, the model is not in float32, torch cannot export its language model, or
            the embeddings differ by more than `MAX_DIFFERENCE`.
    """
    if model.dtype != torch.float32:
        raise ValueError(f"an ONNX export is float32, got a model in {model.dtype}: load it with dtype='float32'")
    template = complete_template(processor)
    directory, model_type = new_folder(directory), model.config.backbone_config.model_type
    try:
        _write_graph(model, directory / "model.onnx")
        _write_companions(model, processor, template, directory)
        difference = _largest_difference(model, processor, directory)
        if not difference <= MAX_DIFFERENCE:  # also catches NaN
            raise ValueError(
                f"the ONNX graph of '{model_type}' gives embeddings that differ from the model's by {difference:.1e} "
                f"(the limit is {MAX_DIFFERENCE:.0e}), so it was removed: use the plain export"
            )
    except (torch.onnx.OnnxExporterError, Fail, InvalidArgument, InvalidGraph, NotImplemented) as error:
        shutil.rmtree(directory)
        raise ValueError(
            f"torch.onnx cannot export the language model of '{model_type}' as a graph that ONNX Runtime runs at "
            f"every batch size and length ({type(error).__name__}): use the plain export, or `unime serve`"
        ) from error
    except BaseException:
        shutil.rmtree(directory)
        raise
    return difference


def embed_texts(
    session: onnxruntime.InferenceSession, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> np.ndarray:
    """Embed texts with an exported graph.

    Args:
        session (`InferenceSession`): The graph.
        tokenizer (`PreTrainedTokenizerBase`): The exported tokenizer, with its chat template.
        items (`Sequence[Item]`): Texts, with or without an instruction.

    Returns:
        `np.ndarray` of shape `(len(items), dimensions)`: Unit vectors.
    """
    conversations = [to_messages(to_item_dict(item)) for item in items]
    inputs = tokenizer.apply_chat_template(conversations, return_dict=True, padding=True, return_tensors="np")
    feeds = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    return session.run(["sentence_embedding"], feeds)[0]


def _write_graph(model: UniMEModel, path: Path) -> None:
    if model.backbone.get_decoder() is model.backbone:
        raise ValueError(
            f"'{model.config.backbone_config.model_type}' has no separate language model to export as ONNX"
        )
    ids = torch.full((2, 12), model.backbone.get_input_embeddings().num_embeddings - 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # without padding in the example, the exporter would drop the mask
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    program = torch.onnx.export(
        TextPath(model).eval(),
        (ids, mask),
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes=(free, free),
        verbose=False,
    )
    cast(torch.onnx.ONNXProgram, program).save(path, external_data=True)


def _write_companions(model: UniMEModel, processor: ProcessorMixin, template: str, directory: Path) -> None:
    """Write the configuration, the tokenizer, the template and the card."""
    config = deepcopy(model.backbone.config.get_text_config())
    config.architectures = [type(model.backbone.get_decoder()).__name__]
    config.save_pretrained(directory)
    processor.tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template)
    (directory / "README.md").write_text(CARD.format(dimensions=model.config.hidden_size))


def _largest_difference(model: UniMEModel, processor: ProcessorMixin, directory: Path) -> float:
    """Compare the written tokenizer, template and graph with the model itself."""
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    differences = []
    for items in CHECK_BATCHES:
        expected = model.encode(items, processor)
        for tokenizer.padding_side in ("left", "right"):
            differences.append(np.abs(embed_texts(session, tokenizer, items) - expected).max())
    return float(max(differences))
