"""Pre-train the vision tower of the tiny backbone with language supervision, as LLaVA's tower was pre-trained.

    python recipes/tiny/vision.py --config recipes/tiny/vision.yaml

Each patch of a scene predicts the object, the tile and the position of its cell; each patch of a crop or of a single
emoji predicts what the image shows. The embedding of a class is the mean of the token embeddings of its name in one of
six languages, so that images and the words of the language model share a space before the language model is trained.
The script uses drawings, object pairs and categories of the training split only. The same command resumes a run.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BatchEncoding,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import TrlParser

from unime.checkpoint_safety import give_weights_the_umask
from unime.openmoji.captions import sample_scene
from unime.openmoji.catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from unime.openmoji.dataset import draw_image, openmoji_conversations
from unime.openmoji.names import emoji_with_category, emoji_with_name
from unime.openmoji.scenes import CELLS, GRID, POSITIONS, Placed, Scene, crop_spec
from unime.openmoji.views import View
from unime.openmoji.vocabulary import COLOUR_NAMES, objects
from unime.trainers.checkpointing import last_complete_checkpoint


PIXELS = 96
IGNORED_LABEL = -100  # label of classes that the training split does not contain
TowerParts = tuple[SiglipVisionModel, SiglipImageProcessor, PreTrainedTokenizerBase, nn.EmbeddingBag]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; a word has the same token at the start of a text as elsewhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=special[2:],
        model_max_length=1024,
        padding_side="right",
    )


@dataclass
class ScriptArguments:
    """Training data and initial weights."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Backbone to continue from; its words and tokenizer stay frozen. Default: random."},
    )
    num_rows: int = field(default=400_000, metadata={"help": "Number of images of the training split."})
    emoji: float = field(
        default=0.6, metadata={"help": "Share of single emoji; 3/4 of the rest are scenes, 1/4 crops."}
    )
    texts: int = field(default=50_000, metadata={"help": "Number of conversations to train the tokenizer on."})
    vocabulary: int = field(default=4096, metadata={"help": "Size of the tokenizer's vocabulary."})


class PatchClasses:
    """The classes of a patch: its emoji (without skin tone), its look, its subcategory, and its position.

    Without the position as a class, the language model learns positions last. An empty cell has the position
    "nowhere": if every image contained all nine positions, they would carry no information about it.
    """

    def __init__(self):
        tones = sorted({entry.tone for entry in catalogue() if entry.tone})
        self.empty = len(catalogue())
        self.looks = {look: index for index, look in enumerate([*COLOUR_NAMES, *tones, "none"])}
        names = sorted({entry.subcategory for entry in catalogue()})
        self.subcategories = {name: index for index, name in enumerate(names)}
        self.trained = {entry.index for entry in emoji_with_category("train")}

    def names(self, language: str) -> list[list[str]]:
        """Return the class names of each kind; emoji in the given language, where they have a name in it."""
        emoji_names = [entry.names.get(language, entry.name) for entry in catalogue()]
        return [[*emoji_names, "empty"], list(self.looks), list(self.subcategories), [*POSITIONS, "nowhere"]]

    def of_scene(self, scene: Scene) -> list[list[int]]:
        """Return the classes of each cell: object, colour of the tile, no subcategory, position."""
        objects_in_cells, looks, positions = [self.empty] * CELLS, [self.looks["none"]] * CELLS, [CELLS] * CELLS
        for placed in scene.placed:
            objects_in_cells[placed.cell] = objects()[placed.object].image
            looks[placed.cell], positions[placed.cell] = placed.colour, placed.cell
        return [objects_in_cells, looks, [IGNORED_LABEL] * CELLS, positions]

    def of_crop(self, placed: Placed) -> list[list[int]]:
        """Return the classes of an object's crop, the same for every patch: object, colour of the tile."""
        return [
            [kind] * CELLS for kind in (objects()[placed.object].image, placed.colour, IGNORED_LABEL, IGNORED_LABEL)
        ]

    def of_emoji(self, entry: Emoji) -> list[list[int]]:
        """Return the classes of an emoji, the same for every patch: role, skin tone, subcategory in training."""
        drawing = catalogue()[same_drawing()[entry.index]]
        subcategory = self.subcategories[entry.subcategory] if entry.index in self.trained else IGNORED_LABEL
        kinds = (drawing.base, self.looks[drawing.tone or "none"], subcategory, IGNORED_LABEL)
        return [[kind] * CELLS for kind in kinds]


def sample_content(emoji: float, rng: random.Random) -> Emoji | Scene | Placed:
    """Return what an image of the training split shows.

    Args:
        emoji (`float`): Share of single emoji; 3/4 of the rest are scenes, 1/4 crops of an object.
        rng (`random.Random`): Source of randomness.
    """
    kind = rng.choices(("emoji", "scene", "crop"), (emoji, 0.75 * (1 - emoji), 0.25 * (1 - emoji)))[0]
    if kind == "emoji":
        return rng.choice(emoji_with_name("train"))
    scene = sample_scene("train", rng.choice((2, 3, 4, 5, CELLS)), rng)
    return scene if kind == "scene" else scene.placed[0]


class LabelledImages(torch.utils.data.Dataset):
    """Single emoji, scenes and crops of the training split with the classes of each patch; rows are deterministic."""

    def __init__(self, classes: PatchClasses, size: int, emoji: float, seed: int):
        self.classes, self.size, self.emoji, self.seed = classes, size, emoji, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{index}")
        content = sample_content(self.emoji, rng)
        if isinstance(content, Scene):
            return {"image": content.render(), "labels": self.classes.of_scene(content)}
        if isinstance(content, Placed):
            return {"image": draw_image(crop_spec(content)), "labels": self.classes.of_crop(content)}
        view = View.sample(content.index, rng)
        return {"image": draw_image(view.spec), "labels": self.classes.of_emoji(content)}


class PatchClassifier(nn.Module):
    """A vision tower that compares patches with class names, with one linear layer per kind of class."""

    def __init__(self, tower: SiglipVisionModel, words: nn.EmbeddingBag, names: Sequence[Sequence[BatchEncoding]]):
        super().__init__()
        self.tower, self.words = tower, words
        self.names = names  # by language and kind of class
        size = tower.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(size, size) for _ in names[0])

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss in a random language.

        Args:
            pixel_values (`Tensor`): `(batch, 3, height, width)`.
            labels (`Tensor`): `(batch, kinds, patches)`.
        """
        patches = self.tower(pixel_values).last_hidden_state  # (batch, patches, dimensions)
        language = self.names[random.choice([0, 0, *range(len(self.names))])]  # English, the first, is most frequent
        loss = 0
        for kind, (head, names) in enumerate(zip(self.heads, language, strict=True)):
            offsets = torch.tensor([0, *map(len, names["input_ids"][:-1])]).cumsum(0)
            classes = self.words(torch.tensor(list(itertools.chain(*names["input_ids"]))), offsets)
            scores = (head(patches) @ classes.T).float()  # (batch, patches, classes)
            loss = loss + cross_entropy(scores.transpose(1, 2), labels[:, kind], ignore_index=IGNORED_LABEL)
        return {"loss": loss}


@dataclass
class ImageCollator:
    """Collator that stacks images and labels."""

    processor: SiglipImageProcessor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = self.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def patch_tower() -> SiglipVisionConfig:
    """Return the configuration of a tower whose patches are the cells of a scene."""
    return SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=PIXELS,
        patch_size=PIXELS // GRID,  # a patch is a cell
        vision_use_head=False,
        attn_implementation="eager",  # on a CPU its backward pass is twice as fast at this length
    )


def convolutional_tower() -> ResNetConfig:
    """Return the configuration of a ResNet-18 of half the width, with one output per cell of a scene."""
    return ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],  # on grids of 24, 12, 6 and 3
        depths=[2, 2, 2, 2],
        layer_type="basic",
        hidden_size=256,  # where FastVLM's projector looks for it
    )


def random_tower(texts: Sequence[str], vocabulary: int) -> TowerParts:
    """Build a random tower and random word embeddings, with a tokenizer trained on the texts."""
    config = patch_tower()
    processor = SiglipImageProcessor(
        size={"height": PIXELS, "width": PIXELS}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    tokenizer = train_tokenizer(texts, vocabulary)
    words = nn.EmbeddingBag(len(tokenizer), config.hidden_size)
    nn.init.normal_(words.weight, std=config.hidden_size**-0.5)
    return SiglipVisionModel(config), processor, tokenizer, words


def backbone_tower(folder: str) -> TowerParts:
    """Load the tower of a backbone with its word embeddings, frozen because the language model depends on them."""
    backbone = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    processor = LlavaProcessor.from_pretrained(folder)
    words = nn.EmbeddingBag.from_pretrained(backbone.get_input_embeddings().weight.detach(), freeze=True)
    return backbone.model.vision_tower, processor.image_processor, processor.tokenizer, words


def main(script: ScriptArguments, args: TrainingArguments) -> None:
    set_seed(args.seed)
    if script.model_name_or_path is None:
        with args.main_process_first():
            stored = openmoji_conversations("train", script.texts, seed=args.seed).with_format(None)
        tower, processor, tokenizer, words = random_tower([*stored["prompt"], *stored["answer"]], script.vocabulary)
    else:
        tower, processor, tokenizer, words = backbone_tower(script.model_name_or_path)
    classes = PatchClasses()
    names = [[tokenizer(names_of_kind) for names_of_kind in classes.names(language)] for language in LANGUAGES]
    trainer = Trainer(
        PatchClassifier(tower, words, names),
        args,
        train_dataset=LabelledImages(classes, script.num_rows, script.emoji, args.seed),
        data_collator=ImageCollator(processor),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if trainer.is_world_process_zero():
        tower.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_file(words.state_dict(), f"{args.output_dir}/words.safetensors")
        give_weights_the_umask(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
