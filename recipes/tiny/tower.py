"""Give a checkpoint a ResNet that sees in the drawings of several artists what its tower saw in OpenMoji's.

    make styles # for all artists but OpenMoji
    python recipes/tiny/tower.py --config recipes/tiny/tower.yaml

The language model of the checkpoint has learned its tasks and stays as it is. A random ResNet and projector, which
make it a FastVLM, learn to give it for a drawing of any artist, at any size and on any background what the old tower
gave it for OpenMoji's drawing on white. Only drawings, object pairs and categories of the training split are used. The
same command resumes a run.
"""

import copy
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
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
from unime.openmoji.catalogue import same_drawing
from unime.openmoji.dataset import draw_image, in_style
from unime.openmoji.names import emoji_with_name
from unime.openmoji.scenes import CELLS, Placed, Scene, crop_spec
from unime.openmoji.styles import OPENMOJI, check_training_styles
from unime.openmoji.views import View
from unime.openmoji.vocabulary import COLOUR_NAMES, objects
from unime.trainers.checkpointing import last_complete_checkpoint, write_training_record


TEMPERATURE = 0.07  # of the cosines between an image and the references
SCENE = -100  # label of scenes, which are no reference


@dataclass
class ScriptArguments:
    """The checkpoint and the training data."""

    model_name_or_path: str = field(
        default="runs/checkpoints/unime-tiny",
        metadata={"help": "Checkpoint whose vision tower is replaced (unime-tiny-styles.sh says where it is from)."},
    )
    tower: str | None = field(
        default=None, metadata={"help": "Checkpoint with a ResNet to continue from. Default: a random one."}
    )
    num_rows: int = field(default=400_000, metadata={"help": "Number of images."})
    emoji: float = field(
        default=0.5, metadata={"help": "Share of single emoji; 3/4 of the rest are scenes, 1/4 crops."}
    )
    styles: list[str] = field(
        default_factory=lambda: ["openmoji", "twemoji", "noto", "fluent"], metadata={"help": "Styles of the drawings."}
    )
    openmoji: float = field(
        default=0.25,
        metadata={"help": "Share of OpenMoji's style, if it is one of them; the others share the rest."},
    )
    image_augmentations: list[str] = field(
        default_factory=lambda: list(IMAGE_AUGMENTATIONS), metadata={"help": "Random changes, as in stage 2."}
    )


@cache
def references() -> dict[str, int]:
    """Return the specs of what is told apart as a whole, drawings of emoji and crops of objects, and their numbers."""
    emoji = sorted({same_drawing()[entry.index] for entry in emoji_with_name("train")})
    crops = itertools.product(range(len(objects())), range(len(COLOUR_NAMES)))
    specs = [View.whole(index).spec for index in emoji]
    specs += [crop_spec(Placed(object, 0, colour)) for object, colour in crops]
    return {spec: number for number, spec in enumerate(specs)}


class StyledImages(torch.utils.data.Dataset):
    """Images in random styles with the reference that they show, or OpenMoji's image of the scene; deterministic."""

    def __init__(self, script: ScriptArguments, seed: int):
        check_training_styles(script.styles)
        self.script, self.seed = script, seed
        self.augmentation = ImageAugmentation(script.image_augmentations)

    def __len__(self) -> int:
        return self.script.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{index}")
        content = sample_content(self.script.emoji, rng)
        if isinstance(content, Scene):
            spec = content.spec
            occupied = [content.at(cell) is not None for cell in range(CELLS)]
            shown = {"label": SCENE, "target": draw_image(spec), "occupied": occupied}
        elif isinstance(content, Placed):
            spec = crop_spec(content)
            shown = {"label": references()[spec]}
        else:
            drawing = same_drawing()[content.index]
            spec = View.sample(drawing, rng).spec
            shown = {"label": references()[View.whole(drawing).spec]}
        image = draw_image(in_style(spec, self.sample_style(rng), transparent=True))
        return {"image": self.augmentation.image(image, rng)} | shown

    def sample_style(self, rng: random.Random) -> str:
        """Return the style of an image."""
        others = [style for style in self.script.styles if style != OPENMOJI]
        own = OPENMOJI in self.script.styles and (not others or rng.random() < self.script.openmoji)
        return OPENMOJI if own else rng.choice(others)


@dataclass
class ImageCollator:
    """Collator that stacks the images and what they show: a reference, or a target and its occupied cells."""

    processor: BaseImageProcessor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {
            "pixels": pixel_values(self.processor, [row["image"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }
        scenes = [row for row in rows if row["label"] == SCENE]
        if not scenes:
            return batch
        return batch | {
            "targets": pixel_values(self.processor, [row["target"] for row in scenes]),
            "occupied": torch.tensor([row["occupied"] for row in scenes]),
        }


def pixel_values(processor: BaseImageProcessor, images: Sequence[Image.Image]) -> Tensor:
    """Return images as the input of a tower, `(images, 3, height, width)`."""
    return processor(images, return_tensors="pt")["pixel_values"]


def with_convolutional_tower(model: UniMEModel, tower: UniMEModel | None = None) -> UniMEModel:
    """Return a FastVLM with the language model of a model; its ResNet and projector are trained.

    Args:
        model (`UniMEModel`): The model whose language model stays.
        tower (`UniMEModel`, *optional*): The model whose ResNet and projector are the first weights. Default: random.

    Raises:
        ValueError: `tower` has another vision tower.
    """
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
    source = tower or model  # whose training this one continues
    student.name_or_path = source.name_or_path or source.backbone.name_or_path
    if tower is not None:
        if tower.backbone.config.model_type != student.backbone.config.model_type:
            raise ValueError(
                f"{student.name_or_path} has no ResNet to continue from, but the tower of a "
                f"{tower.backbone.config.model_type}: give a checkpoint that this script trained"
            )
        for name in ("vision_tower", "multi_modal_projector"):
            getattr(student.backbone, name).load_state_dict(getattr(tower.backbone, name).state_dict())
    return student


class TowerDistillation(nn.Module):
    """A model whose new tower is trained, and what its language model received from the old one.

    The new tower gives the values of the old one, and tells apart what the old one told apart: emoji and crops as
    whole images, the objects of scenes cell by cell. With the error alone, scenes stayed unread (recipes/README.md).

    Args:
        model (`UniMEModel`): The model with the new tower.
        teacher (`UniMEModel`): The model with the old tower.
        images (`Tensor`): OpenMoji's images of the references, `(references, 3, height, width)`.
    """

    def __init__(self, model: UniMEModel, teacher: UniMEModel, images: Tensor):
        super().__init__()
        self.model = model
        self.teacher = [teacher.eval()]  # a list, so that it is no part of what is trained and saved
        with torch.inference_mode():
            features = torch.cat([image_features(teacher, part) for part in images.split(256)]).clone()
        mean = features.flatten(1).mean(dim=0)
        directions, variance = self.directions(features.flatten(1), mean), features.var(dim=(0, 1)).mean()
        buffers = {"features": features, "mean": mean, "references": directions, "variance": variance}
        for name, value in buffers.items():  # they follow the model to its device
            self.register_buffer(name, value, persistent=False)

    def train(self, mode: bool = True) -> "TowerDistillation":
        """Set the mode; the batch normalization of a new tower learns its statistics, which UniME else keeps."""
        super().train(mode)
        self.model.backbone.vision_tower.train(mode)
        return self

    @staticmethod
    def directions(features: Tensor, mean: Tensor) -> Tensor:
        """Return the unit vectors from a mean to features, `(rows, dimensions)`."""
        return normalize(features - mean, dim=1)

    def forward(
        self, pixels: Tensor, labels: Tensor, targets: Tensor | None = None, occupied: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss.

        Args:
            pixels (`Tensor`): `(images, 3, height, width)`.
            labels (`Tensor`): The reference that each image shows, `(images,)`; `SCENE` for scenes.
            targets (`Tensor`, *optional*): OpenMoji's images of the scenes, `(scenes, 3, height, width)`.
            occupied (`Tensor`, *optional*): The cells of the scenes with an object, `(scenes, patches)`.
        """
        # On a CPU, convolutions of inputs with the channels last are a fifth faster.
        features = image_features(self.model, pixels.contiguous(memory_format=torch.channels_last))
        whole = labels != SCENE
        losses = []
        if whole.any():
            answers, given = labels[whole], features[whole]
            losses.append(mse_loss(given, self.features[answers]) / self.variance)
            cosines = self.directions(given.flatten(1), self.mean) @ self.references.T
            losses.append(cross_entropy(cosines / TEMPERATURE, answers))
        if targets is not None:
            with torch.no_grad():
                expected = image_features(self.teacher[0].to(targets.device), targets)
            given, cells = features[~whole], expected[occupied]
            losses.append(mse_loss(given, expected) / expected.var(dim=(0, 1)).mean())
            mean = cells.mean(dim=0)
            cosines = self.directions(given[occupied], mean) @ self.directions(cells, mean).T
            losses.append(cross_entropy(cosines / TEMPERATURE, torch.arange(len(cells), device=cells.device)))
        return {"loss": sum(losses)}


def image_features(model: UniMEModel, pixels: Tensor) -> Tensor:
    """Return what the language model receives for images, `(images, patches, dimensions)`."""
    return torch.stack(list(model.backbone.get_image_features(pixel_values=pixels).pooler_output))


class TowerTrainer(Trainer):
    """A `Trainer` whose name tells in the record of a checkpoint's trainings what was trained."""


def main(script: ScriptArguments, args: TrainingArguments) -> None:
    set_seed(args.seed)
    teacher, processor = load_model(script.model_name_or_path, dtype="float32", attn_implementation="eager")
    tower = script.tower and load_model(script.tower, dtype="float32")[0]
    model = with_convolutional_tower(teacher, tower)
    images = processor.image_processor
    images.crop_size = images.size  # nothing is cropped; vLLM counts the tokens of an image by it
    drawings = pixel_values(images, [draw_image(spec) for spec in references()])
    trainer = TowerTrainer(
        TowerDistillation(model, teacher, drawings),
        args,
        train_dataset=StyledImages(script, args.seed),
        data_collator=ImageCollator(images),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if trainer.is_world_process_zero():
        save_checkpoint(model.eval(), processor, args.output_dir)
        write_training_record(trainer, model, args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
