"""Give a checkpoint a ResNet that sees in the drawings of several artists what its tower saw in OpenMoji's.

    make styles # for all artists but OpenMoji
    python recipes/tiny/tower.py --config recipes/tiny/tower.yaml

The language model of the checkpoint has learned its tasks and stays as it is. A random ResNet and projector, which
make it a FastVLM, learn to give it for a drawing of any artist, at any size and on any background what the old tower
gave it for OpenMoji's drawing on white. Only drawings, object pairs and categories of the training split are used. The
same command resumes a run.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize
from transformers import BaseImageProcessor, FastVlmConfig, Trainer, TrainingArguments, set_seed
from trl import TrlParser
from vision import convolutional_tower, sample_content

from unime import UniMEModel, load_model, save_checkpoint
from unime.data.image_augmentation import IMAGE_AUGMENTATIONS, ImageAugmentation
from unime.openmoji.catalogue import Emoji, catalogue, same_drawing
from unime.openmoji.dataset import draw_image, in_style
from unime.openmoji.names import emoji_with_name
from unime.openmoji.scenes import Scene, crop_spec
from unime.openmoji.styles import check_training_styles
from unime.openmoji.views import View
from unime.trainers.checkpointing import last_complete_checkpoint


TEMPERATURE = 0.07  # of the cosines between a drawing and OpenMoji's drawings
NO_EMOJI = -100  # label of scenes and crops


@dataclass
class ScriptArguments:
    """The checkpoint and the training data."""

    model_name_or_path: str = field(
        default="checkpoints/unime-tiny", metadata={"help": "Checkpoint whose vision tower is replaced."}
    )
    num_rows: int = field(default=400_000, metadata={"help": "Number of images."})
    emoji: float = field(
        default=0.7, metadata={"help": "Share of single emoji; 3/4 of the rest are scenes, 1/4 crops."}
    )
    styles: list[str] = field(
        default_factory=lambda: ["openmoji", "twemoji", "noto", "fluent"], metadata={"help": "Styles of the drawings."}
    )
    image_augmentations: list[str] = field(
        default_factory=lambda: list(IMAGE_AUGMENTATIONS), metadata={"help": "Random changes, as in stage 2."}
    )


class StyledImages(torch.utils.data.Dataset):
    """Images in random styles, scenes and crops with OpenMoji's image of the same content; rows are deterministic."""

    def __init__(self, script: ScriptArguments, seed: int):
        check_training_styles(script.styles)
        self.script, self.seed = script, seed
        self.augmentation = ImageAugmentation(script.image_augmentations)

    def __len__(self) -> int:
        return self.script.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{index}")
        content, emoji = sample_content(self.script.emoji, rng), NO_EMOJI
        if isinstance(content, Emoji):
            emoji = same_drawing()[content.index]
            spec = View.sample(emoji, rng).spec
        else:
            spec = content.spec if isinstance(content, Scene) else crop_spec(content)
        image = draw_image(in_style(spec, rng.choice(self.script.styles), transparent=True))
        target = draw_image(spec) if emoji == NO_EMOJI else None
        return {"image": self.augmentation.image(image, rng), "target": target, "emoji": emoji}


@dataclass
class ImageCollator:
    """Collator that stacks the images, the targets of scenes and crops, and the emoji that the images show."""

    processor: BaseImageProcessor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {
            "pixels": pixel_values(self.processor, [row["image"] for row in rows]),
            "labels": torch.tensor([row["emoji"] for row in rows]),
        }
        targets = [row["target"] for row in rows if row["target"] is not None]
        return batch | {"targets": pixel_values(self.processor, targets)} if targets else batch


def pixel_values(processor: BaseImageProcessor, images: Sequence[Image.Image]) -> Tensor:
    """Return images as the input of a tower, `(images, 3, height, width)`."""
    return processor(images, return_tensors="pt")["pixel_values"]


def with_convolutional_tower(model: UniMEModel) -> UniMEModel:
    """Return a FastVLM with the language model of a model, and a random ResNet and projector, which are trained."""
    config = model.backbone.config
    student = UniMEModel.from_backbone(
        FastVlmConfig(
            vision_config=convolutional_tower(),
            text_config=config.text_config,
            image_token_index=config.image_token_index,
            image_seq_length=config.image_seq_length,
            tie_word_embeddings=config.tie_word_embeddings,
        ),
        attn_implementation="eager",
    )
    student.config.pooling, student.config.prompts = model.config.pooling, model.config.prompts
    student.backbone.language_model = copy.deepcopy(model.backbone.language_model).requires_grad_(False)
    return student


class TowerDistillation(nn.Module):
    """A model whose new tower is trained, and what its language model received from the old one.

    Args:
        model (`UniMEModel`): The model with the new tower.
        teacher (`UniMEModel`): The model with the old tower.
        drawings (`Tensor`): OpenMoji's drawings, `(emoji, 3, height, width)`.
        candidates (`Sequence[int]`): The emoji to tell apart.
    """

    def __init__(self, model: UniMEModel, teacher: UniMEModel, drawings: Tensor, candidates: Sequence[int]):
        super().__init__()
        self.model = model
        self.teacher = [teacher.eval()]  # a list, so that it is no part of what is trained and saved
        with torch.inference_mode():
            features = torch.cat([image_features(teacher, part) for part in drawings.split(256)]).clone()
        place = torch.full((len(catalogue()),), NO_EMOJI)
        place[torch.tensor(candidates)] = torch.arange(len(candidates))
        mean = features.mean(dim=0)
        buffers = {"place": place, "features": features, "mean": mean, "variance": features.var(dim=(0, 1)).mean()}
        for name, value in buffers.items():  # they follow the model to its device
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("references", self.directions(features), persistent=False)

    def train(self, mode: bool = True) -> "TowerDistillation":
        """Set the mode; the batch normalization of a new tower learns its statistics, which UniME else keeps."""
        super().train(mode)
        self.model.backbone.vision_tower.train(mode)
        return self

    def directions(self, features: Tensor) -> Tensor:
        """Return unit vectors of the features of whole images, `(images, patches x dimensions)`."""
        return normalize((features - self.mean).flatten(1), dim=1)

    def scores(self, features: Tensor) -> Tensor:
        """Return the cosines between images and OpenMoji's drawings, `(images, candidates)`."""
        return self.directions(features) @ self.references.T

    def forward(self, pixels: Tensor, labels: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss.

        Args:
            pixels (`Tensor`): `(images, 3, height, width)`.
            labels (`Tensor`): The emoji that each image shows, `(images,)`; `NO_EMOJI` for scenes and crops.
            targets (`Tensor`, *optional*): OpenMoji's images of the scenes and crops, `(scenes and crops, 3, height,
                width)`.
        """
        features = image_features(self.model, pixels)
        single = labels != NO_EMOJI
        answers = self.place[labels[single]]
        expected = torch.empty_like(features)
        expected[single] = self.features[answers]
        if targets is not None:
            with torch.no_grad():
                expected[~single] = image_features(self.teacher[0].to(targets.device), targets)
        loss = mse_loss(features, expected) / self.variance
        if single.any():
            loss = loss + cross_entropy(self.scores(features[single]) / TEMPERATURE, answers)
        return {"loss": loss}


def image_features(model: UniMEModel, pixels: Tensor) -> Tensor:
    """Return what the language model receives for images, `(images, patches, dimensions)`."""
    return torch.stack(list(model.backbone.get_image_features(pixel_values=pixels).pooler_output))


def main(script: ScriptArguments, args: TrainingArguments) -> None:
    set_seed(args.seed)
    teacher, processor = load_model(script.model_name_or_path, dtype="float32", attn_implementation="eager")
    model = with_convolutional_tower(teacher)
    images = processor.image_processor
    images.crop_size = images.size  # nothing is cropped; vLLM counts the tokens of an image by it
    candidates = sorted({same_drawing()[entry.index] for entry in emoji_with_name("train")})
    drawings = pixel_values(images, [draw_image(View.whole(index).spec) for index in candidates])
    trainer = Trainer(
        TowerDistillation(model, teacher, drawings, candidates),
        args,
        train_dataset=StyledImages(script, args.seed),
        data_collator=ImageCollator(images),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if trainer.is_world_process_zero():
        save_checkpoint(model.eval(), processor, args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
