"""Phi-3-Vision and Phi-3.5-Vision: a CLIP tower, a projector that reads a grid of crops, and Phi-3-mini.

An own implementation around the native `CLIPVisionModel` and `Phi3Model`, which loads the published weights
(microsoft/Phi-3.5-vision-instruct) and gives their hidden states.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionModel,
    Phi3Model,
    PreTrainedModel,
    initialization,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from .configuration_phi3_v import Phi3VConfig


class Phi3VProjector(nn.Module):
    """Maps the patches of an image's crops to the width of the language model, four neighbors to one token.

    Args:
        config ([`Phi3VConfig`]): The configuration.
    """

    def __init__(self, config: Phi3VConfig):
        super().__init__()
        width, hidden_size = 4 * config.vision_config.hidden_size, config.text_config.hidden_size
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))  # stands before the whole image
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))  # ends each line of tokens
        self.img_projection = nn.Sequential(
            nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, crops: Tensor, rows: int, columns: int) -> Tensor:
        """Return the features `(tokens, hidden_size)` of one image.

        Args:
            crops (`Tensor` of shape `(rows * columns + 1, patches, vision_hidden_size)`): Patches of the whole image
                and of the crops, row by row.
            rows (`int`): Rows of crops.
            columns (`int`): Columns of crops.
        """
        parts = self._lines(crops[1:], rows, columns), self.glb_GN[0], self._lines(crops[:1], 1, 1)
        return self.img_projection(torch.cat(parts))

    def _lines(self, crops: Tensor, rows: int, columns: int) -> Tensor:
        """Merge 2 x 2 patches, lay the crops side by side, and end each line with the separator."""
        side = round(crops.shape[1] ** 0.5) // 2
        merged = crops.view(rows, columns, side, 2, side, 2, -1).permute(0, 2, 1, 4, 3, 5, 6)
        lines = merged.reshape(rows * side, columns * side, -1)
        return torch.cat([lines, self.sub_GN[0].expand(rows * side, 1, -1)], dim=1).flatten(0, 1)


class Phi3VRotaryEmbedding(Phi3RotaryEmbedding):
    """LongRoPE that keeps no state.

    The native module writes the frequencies of a batch into a buffer, which other threads read and which a conversion
    of the model to half precision rounds. Here they are computed for each batch in float32, as the authors do it.
    """

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosines and sines `(batch, tokens, head_size)` in the dtype of `x`.

        Args:
            x (`Tensor`): Hidden states.
            position_ids (`Tensor` of shape `(batch, tokens)`): Positions.
        """
        rope = self.config.rope_parameters
        short, long = (torch.tensor(rope[f"{name}_factor"], device=x.device) for name in ("short", "long"))
        factors = torch.where(position_ids.max() >= rope["original_max_position_embeddings"], long, short)
        exponents = torch.arange(len(factors), device=x.device).float() / len(factors)
        frequencies = 1.0 / (factors * rope["rope_theta"] ** exponents)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return tuple((values * self.attention_scaling).to(x.dtype) for values in (angles.cos(), angles.sin()))


class Phi3VPreTrainedModel(PreTrainedModel):
    """Base class of [`Phi3VModel`] and [`Phi3VForCausalLM`]."""

    config_class = Phi3VConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return `False`: in custom code, transformers does not initialize missing weights of CLIP as CLIP does."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VProjector):
            initialization.zeros_(module.glb_GN)
            initialization.zeros_(module.sub_GN)


class Phi3VModel(Phi3VPreTrainedModel):
    """The model without a head.

    Args:
        config ([`Phi3VConfig`]): The configuration.
    """

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.vision_tower = CLIPVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = Phi3VProjector(config)
        self.language_model = Phi3Model._from_config(config.text_config)
        if config.text_config.rope_parameters["rope_type"] == "longrope":
            self.language_model.rotary_emb = Phi3VRotaryEmbedding(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Return the features of images, each of shape `(tokens, hidden_size)`, as `pooler_output`.

        Args:
            pixel_values (`Tensor` of shape `(images, num_crops + 1, 3, height, width)`): The whole image, its crops
                row by row, and zeros.
            image_sizes (`Tensor` of shape `(images, 2)`): Height and width of each image, a whole number of crops.
            kwargs: Not used.
        """
        edge = pixel_values.shape[-1]
        grids = [(height // edge, width // edge) for height, width in image_sizes.tolist()]
        counts = [rows * columns + 1 for rows, columns in grids]
        crops = torch.cat([crops[:count] for crops, count in zip(pixel_values, counts, strict=True)])
        states = self.vision_tower(crops, output_hidden_states=True).hidden_states[self.config.vision_feature_layer]
        patches = states[:, 1:].to(self.multi_modal_projector.glb_GN.dtype)  # without the class token
        features = [
            self.multi_modal_projector(image, rows, columns)
            for image, (rows, columns) in zip(patches.split(counts), grids, strict=True)
        ]
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states of a batch.

        One position beyond `original_max_position_embeddings` of the language model, padding included, switches the
        rotary frequencies of all rows of the batch.

        Args:
            input_ids (`Tensor` of shape `(batch, tokens)`, *optional*): Tokens, with `image_token_id` for each feature
                of an image.
            attention_mask (`Tensor` of shape `(batch, tokens)`, *optional*): 0 marks padding.
            position_ids (`Tensor` of shape `(batch, tokens)`, *optional*): Positions; by default those in the row,
                padding included.
            inputs_embeds (`Tensor` of shape `(batch, tokens, hidden_size)`, *optional*): Embeddings of the tokens, in
                place of `input_ids`.
            pixel_values (`Tensor`, *optional*): See [`~Phi3VModel.get_image_features`].
            image_sizes (`Tensor`, *optional*): See [`~Phi3VModel.get_image_features`].
            kwargs: Passed to `Phi3Model` (`use_cache`, `output_hidden_states`, ...).

        Raises:
            ValueError: The images have another number of features than there are tokens of images.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, cast(Tensor, image_sizes)).pooler_output
            inputs_embeds = self._insert(features, input_ids, inputs_embeds)
        return self.language_model(
            attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )

    def _insert(self, features: Sequence[Tensor], input_ids: Tensor | None, inputs_embeds: Tensor) -> Tensor:
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            is_image = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            is_image = input_ids == self.config.image_token_id
        joined = torch.cat(list(features)).to(inputs_embeds)
        if int(is_image.sum()) != len(joined):
            raise ValueError(f"the inputs have {int(is_image.sum())} tokens of images, but the images {len(joined)}")
        return inputs_embeds.masked_scatter(is_image[..., None], joined)


class Phi3VForCausalLM(Phi3VPreTrainedModel):
    """The model with its language-model head, for whole checkpoints; it does not generate.

    Args:
        config ([`Phi3VConfig`]): The configuration.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: Phi3VConfig):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **kwargs) -> CausalLMOutputWithPast:
        """Return the logits of a batch.

        Args:
            input_ids (`Tensor` of shape `(batch, tokens)`, *optional*): Tokens.
            kwargs: Passed to [`Phi3VModel`].
        """
        outputs = self.model(input_ids=input_ids, **kwargs)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(logits=self.lm_head(outputs.last_hidden_state), **others)


class _ReadRenaming(WeightRenaming):
    """A renaming of weights that are read, and of none that are written."""

    __slots__ = ()

    def reverse_transform(self) -> "_ReadRenaming":
        """Return the renaming itself, which finds nothing in the names to write."""
        return self


# From the names of published weights to those of the modules above.
register_checkpoint_conversion_mapping(
    "Phi3VModel",
    [
        _ReadRenaming(r"^model\.", ""),  # where the head is left out
        # A second name of the token embeddings, which some fine-tuned checkpoints have, alone or beside the first.
        _ReadRenaming(r"^vision_embed_tokens\.wte\.", "embed_tokens."),
        WeightRenaming(r"^(layers|embed_tokens|norm)\.", r"language_model.\1."),
        WeightRenaming(r"^vision_embed_tokens\.img_processor\.", "vision_tower."),
        WeightRenaming(r"^vision_embed_tokens\.", "multi_modal_projector."),
    ],
    overwrite=True,
)

Phi3VModel.register_for_auto_class("AutoModel")
Phi3VForCausalLM.register_for_auto_class("AutoModelForImageTextToText")
AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)

__all__ = ["Phi3VForCausalLM", "Phi3VModel"]
