"""Export as ONNX graphs: token ids and a mask in, `sentence_embedding` out; and images in, their features out."""

import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

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
from onnxscript import ir  # noqa: E402


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

IMAGES = [Image.radial_gradient("L").resize(size).convert("RGB") for size in ((40, 24), (300, 500))]
CHECK_IMAGE_ITEMS: list[Item] = [IMAGES[0], {"image": IMAGES[1], "text": "What is it?"}, {"image": IMAGES, "text": ""}]

# Vision towers that read every image at one size, so that one graph fits all images, by the type of the backbone.
FIXED_SIZE_TOWERS = {"llava": ("clip_vision_model", "siglip_vision_model"), "fast_vlm": ("resnet",)}
CARD = """\
# ONNX graphs of a UniME checkpoint

`model.onnx` embeds texts ({dimensions} dimensions, float32) as the original checkpoint does{images}. The chat
template contains the prompt; an instruction is the system message.

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
IMAGES_CARD = """
`vision.onnx` makes of images the features that `model.onnx` reads where the prompt has image tokens:

```python
import onnxruntime
from PIL import Image
from transformers import AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder)
vision, session = (onnxruntime.InferenceSession(f"{folder}/{name}.onnx") for name in ("vision", "model"))
image = Image.radial_gradient("L").convert("RGB")
parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
inputs = processor.apply_chat_template(
    [[{"role": "user", "content": parts}], [{"role": "user", "content": parts[:1]}]],
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={"padding": True},
)
inputs = {name: values.numpy() for name, values in inputs.items()}
(features,) = vision.run(["image_features"], {"pixel_values": inputs.pop("pixel_values")})
(embeddings,) = session.run(["sentence_embedding"], inputs | {"image_features": features})
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
        self.image_token_id = model.config.backbone_config.to_dict().get("image_token_index")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Return unit vectors of shape `(batch, dimensions)` for token ids of shape `(batch, tokens)`.

        `image_features`, one row for each image token of the batch in order, and at least one row, take their places.
        """
        inputs = {"input_ids": input_ids}
        if image_features is not None:
            is_image = input_ids == self.image_token_id
            rows = (is_image.flatten().cumsum(0) - 1).clamp(min=0)
            features = image_features[rows].view(*input_ids.shape, -1)
            embedded = self.decoder.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": torch.where(is_image.unsqueeze(-1), features, embedded)}
        output = self.decoder(**inputs, attention_mask=attention_mask, use_cache=False)
        return pool(output.last_hidden_state, attention_mask, pooling=self.pooling)


class ImagePath(nn.Module):
    """The vision tower and projector of LLaVA or FastVLM.

    Args:
        model ([`UniMEModel`]): The model.
    """

    def __init__(self, model: UniMEModel):
        super().__init__()
        self.tower, self.projector = model.backbone.vision_tower, model.backbone.multi_modal_projector
        config = model.config.backbone_config
        layers = config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else layers
        self.first_token = 1 if config.vision_feature_select_strategy == "default" else 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features of shape `(images x tokens, hidden_size)` for pixels `(images, 3, height, width)`."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        selected = [states[layer] for layer in self.layers]
        # Convolutions give a grid, which becomes tokens.
        selected = [state.flatten(2).mT if state.ndim == 4 else state for state in selected]
        return self.projector(torch.cat([state[:, self.first_token :] for state in selected], dim=-1)).flatten(0, 1)


def export_onnx(model: UniMEModel, processor: ProcessorMixin, directory: str | Path) -> float:
    """Export a model with its processor and template, and compare embeddings from the graphs with the model's.

    `model.onnx` reads texts. With a tower of `FIXED_SIZE_TOWERS`, `vision.onnx` reads images, and `model.onnx` its
    features.

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
        if _reads_images(model):
            _write_image_graph(model, processor, directory / "vision.onnx")
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


def embed_items(
    vision: onnxruntime.InferenceSession,
    session: onnxruntime.InferenceSession,
    processor: ProcessorMixin,
    items: Sequence[Item],
) -> np.ndarray:
    """Embed items with images by two exported graphs.

    Args:
        vision (`InferenceSession`): The graph of the vision tower.
        session (`InferenceSession`): The graph of the language model.
        processor (`ProcessorMixin`): The exported processor, with its chat template.
        items (`Sequence[Item]`): Items; at least one has an image.

    Returns:
        `np.ndarray` of shape `(len(items), dimensions)`: Unit vectors.
    """
    inputs = processor.apply_chat_template(
        [to_messages(to_item_dict(item)) for item in items],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    feeds = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    (features,) = vision.run(["image_features"], {"pixel_values": inputs["pixel_values"].numpy()})
    return session.run(["sentence_embedding"], feeds | {"image_features": features})[0]


def _reads_images(model: UniMEModel) -> bool:
    config = model.config.backbone_config
    towers = FIXED_SIZE_TOWERS.get(config.model_type)
    return towers is not None and config.vision_config.model_type in towers


def _write_graph(model: UniMEModel, path: Path) -> None:
    if model.backbone.get_decoder() is model.backbone:
        raise ValueError(
            f"'{model.config.backbone_config.model_type}' has no separate language model to export as ONNX"
        )
    ids = torch.full((2, 12), model.backbone.get_input_embeddings().num_embeddings - 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # without padding in the example, the exporter would drop the mask
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    example, shapes, names = [ids, mask], [free, free], ["input_ids", "attention_mask"]
    no_image = torch.zeros(1, model.config.get_text_config().hidden_size)
    if _reads_images(model):
        example.append(no_image.repeat(3, 1))
        shapes.append({0: torch.export.Dim.DYNAMIC})
        names.append("image_features")
    program = torch.onnx.export(
        TextPath(model).eval(),
        tuple(example),
        dynamo=True,
        input_names=names,
        output_names=["sentence_embedding"],
        dynamic_shapes=tuple(shapes),
        verbose=False,
    )
    program = cast(torch.onnx.ONNXProgram, program)
    for value in program.model.graph.inputs[2:]:  # an input with a value need not be given
        value.const_value = ir.tensor(no_image.numpy(), name=value.name)
        program.model.graph.register_initializer(value)
    program.save(path, external_data=True)


def _write_image_graph(model: UniMEModel, processor: ProcessorMixin, path: Path) -> None:
    pixels = processor.image_processor(IMAGES, return_tensors="pt")["pixel_values"]
    program = torch.onnx.export(
        ImagePath(model).eval(),
        (pixels,),
        dynamo=True,
        input_names=["pixel_values"],
        output_names=["image_features"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        verbose=False,
    )
    cast(torch.onnx.ONNXProgram, program).save(path, external_data=True)


def _write_companions(model: UniMEModel, processor: ProcessorMixin, template: str, directory: Path) -> None:
    """Write the configuration, the tokenizer, the template and the card."""
    config = deepcopy(model.backbone.config.get_text_config())
    config.architectures = [type(model.backbone.get_decoder()).__name__]
    config.save_pretrained(directory)
    (processor if _reads_images(model) else processor.tokenizer).save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template)
    images = "" if _reads_images(model) else "; images need the original checkpoint"
    card = CARD.format(dimensions=model.config.hidden_size, images=images)
    (directory / "README.md").write_text(card + (IMAGES_CARD if _reads_images(model) else ""))


def _largest_difference(model: UniMEModel, processor: ProcessorMixin, directory: Path) -> float:
    """Compare the written tokenizer, template and graph with the model itself."""
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    differences = []
    for items in CHECK_BATCHES:
        expected = model.encode(items, processor)
        for tokenizer.padding_side in ("left", "right"):
            differences.append(np.abs(embed_texts(session, tokenizer, items) - expected).max())
    if _reads_images(model):
        vision = onnxruntime.InferenceSession(directory / "vision.onnx")
        exported = AutoProcessor.from_pretrained(directory)
        embeddings = embed_items(vision, session, exported, CHECK_IMAGE_ITEMS)
        differences.append(np.abs(embeddings - model.encode(CHECK_IMAGE_ITEMS, processor)).max())
    return float(max(differences))
