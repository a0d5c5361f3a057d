"""Processor of Phi-3-Vision and Phi-3.5-Vision.

The authors tokenize each piece of text between two images alone, so that a beginning-of-sequence token stands behind
every image. `<|image|><s>` gives the same tokens in one pass, and each `<|image|>` is repeated as often as its image
has features. The authors' numbered tags (`<|image_1|>`) are accepted as well.
"""

import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData

from .configuration_phi3_v import Phi3VConfig
from .image_processing_phi3_v import Phi3VImageProcessor


IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
# That of the published tokenizer takes strings only, in which the caller writes the tags of the images.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' ~ message['role'] ~ '|>\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<|image|><s>\\n' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


class Phi3VProcessor(ProcessorMixin):
    """Tokenizes prompts and preprocesses their images.

    Args:
        image_processor ([`Phi3VImageProcessor`]): The image processor.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        chat_template (`str`, *optional*): Jinja source of the prompts; the default is the published one, and takes a
            list of texts and images too.
    """

    image_token = "<|image|>"

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ):
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if chat_template is None or "+ message['content'] +" in chat_template:  # the published one, see above
            chat_template = CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, **kwargs: Any) -> tuple:
        """Write the authors' tags as `<|image|><s>`, in rows with images and without `<|image|>`.

        Raises:
            ValueError: The tags of a text are not 1, 2, ... in this order.
        """
        images, text, videos, audio = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if images is not None and text is not None:
            nested = len(images) == len(text) and all(isinstance(row, (list, tuple)) for row in images)
            has_images = map(bool, images) if nested else [True] * len(text)
            text = [
                self._without_tags(row) if images_follow and self.image_token not in row else row
                for row, images_follow in zip(text, has_images, strict=True)
            ]
        return images, text, videos, audio

    def _without_tags(self, text: str) -> str:
        numbers = [int(number) for number in IMAGE_TAG.findall(text)]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(
                f"the images of a text must be numbered <|image_1|>, <|image_2|>, ... in their order, got {numbers}"
            )
        return IMAGE_TAG.sub(f"{self.image_token}{self.tokenizer.bos_token}", text)

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs: Any) -> str:
        """Return the tokens of an image.

        Args:
            image_inputs (`BatchFeature`): Output of the image processor.
            image_idx (`int`): Index of the image.
            kwargs: Not used.
        """
        height, width = map(int, image_inputs["image_sizes"][image_idx])
        size = self.image_processor.size
        tokens = self.image_processor.count_tokens(height // size["height"], width // size["width"])
        return self.image_token * tokens

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[tuple[int, int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Return the tokens of images and their numbers of crops, from their heights and widths."""
        grids = [self.image_processor.grid(width, height) for height, width in image_sizes or ()]
        return MultiModalData(
            num_image_tokens=[self.image_processor.count_tokens(*grid) for grid in grids],
            num_image_patches=[rows * columns + 1 for rows, columns in grids],
        )


Phi3VProcessor.register_for_auto_class()
AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)

__all__ = ["Phi3VProcessor"]
