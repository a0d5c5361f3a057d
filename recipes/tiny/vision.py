"""Pre-train the vision tower of the tiny backbone with words, as LLaVA's tower learned from words before LLaVA did.

    python recipes/tiny/vision.py --config recipes/tiny/vision.yaml

Every patch of a scene tells the object, the tile and the place of its cell, every patch of a crop or of a single emoji
what the image shows. Classes are known by their names in six languages: a class is the mean of its name's token
embeddings, so that images and the words of the language model meet in one space before the language model is there.
Only images, object pairs and categories of the training split are seen.
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
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import TrlParser

from unime.openmoji.captions import sample_scene
from unime.openmoji.catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from unime.openmoji.dataset import draw_image, openmoji_conversations
from unime.openmoji.names import emoji_with_category, emoji_with_name
from unime.openmoji.scenes import CELLS, GRID, POSITIONS, Placed, Scene, crop_spec
from unime.openmoji.views import View
from unime.openmoji.vocabulary import COLOUR_NAMES, objects


PIXELS = 96
UNKNOWN = -100  # label of what the training split does not teach
Parts = tuple[SiglipVisionModel, SiglipImageProcessor, PreTrainedTokenizerBase, nn.EmbeddingBag]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, so that any text can be read; a word is the same token at the start and further on."""
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
    """How many images to see, and where to begin."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Backbone whose tower goes on: its words and tokenizer stay as they are. Default: anew."},
    )
    num_rows: int = field(default=400_000, metadata={"help": "Images of the training split."})
    emoji: float = field(default=0.6, metadata={"help": "Share of single emoji; 3/4 of the rest are scenes."})
    texts: int = field(default=50_000, metadata={"help": "Conversations that the tokenizer learns from."})
    vocabulary: int = field(default=4096, metadata={"help": "Size of the tokenizer's vocabulary."})


class Classes:
    """The classes of a patch: what it shows (an emoji, without its skin tone), how, of which subcategory, and where.

    Where, because a language model that is told what is in a patch but not where learns places last of all. An empty
    cell is nowhere: were all nine places in every image, they would say nothing of it before they are bound to what
    is there.
    """

    def __init__(self):
        tones = sorted({entry.tone for entry in catalogue() if entry.tone})
        self.empty = len(catalogue())
        self.looks = {look: number for number, look in enumerate([*COLOUR_NAMES, *tones, "none"])}
        names = sorted({entry.subcategory for entry in catalogue()})
        self.subcategories = {name: number for number, name in enumerate(names)}
        self.taught = {entry.index for entry in emoji_with_category("train")}

    def names(self, language: str) -> list[list[str]]:
        """The classes' names of each kind, in one language where they have a name in it."""
        what = [entry.names.get(language, entry.name) for entry in catalogue()]
        return [[*what, "empty"], list(self.looks), list(self.subcategories), [*POSITIONS, "nowhere"]]

    def of_scene(self, scene: Scene) -> list[list[int]]:
        """The classes of each cell: object, colour of the tile, no subcategory, place."""
        what, look, where = [self.empty] * CELLS, [self.looks["none"]] * CELLS, [CELLS] * CELLS
        for placed in scene.placed:
            what[placed.cell] = objects()[placed.object].image
            look[placed.cell], where[placed.cell] = placed.colour, placed.cell
        return [what, look, [UNKNOWN] * CELLS, where]

    def of_crop(self, placed: Placed) -> list[list[int]]:
        """The classes of an object's crop, the same for every patch: object, colour of the tile."""
        return [[kind] * CELLS for kind in (objects()[placed.object].image, placed.colour, UNKNOWN, UNKNOWN)]

    def of_emoji(self, entry: Emoji) -> list[list[int]]:
        """The classes of a single emoji, the same for every patch: role, skin tone, subcategory if it is taught."""
        drawing = catalogue()[same_drawing()[entry.index]]
        subcategory = self.subcategories[entry.subcategory] if entry.index in self.taught else UNKNOWN
        kinds = (drawing.base, self.looks[drawing.tone or "none"], subcategory, UNKNOWN)
        return [[kind] * CELLS for kind in kinds]


class LabelledImages(torch.utils.data.Dataset):
    """Single emoji, scenes and crops of the training split with the classes of each patch; a row is ever the same."""

    def __init__(self, classes: Classes, size: int, emoji: float, seed: int):
        self.classes, self.size, self.seed = classes, size, seed
        self.weights = (emoji, 0.75 * (1 - emoji), 0.25 * (1 - emoji))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(("emoji", "scene", "crop"), self.weights)[0]
        if kind == "emoji":
            entry = rng.choice(emoji_with_name("train"))
            return {"image": draw_image(View.sample(entry.index, rng).spec), "labels": self.classes.of_emoji(entry)}
        scene = sample_scene("train", rng.choice((2, 3, 4, 5, CELLS)), rng)
        if kind == "scene":
            return {"image": scene.render(), "labels": self.classes.of_scene(scene)}
        placed = scene.placed[0]
        return {"image": draw_image(crop_spec(placed)), "labels": self.classes.of_crop(placed)}


class PatchClassifier(nn.Module):
    """A vision tower whose patches are compared with the names of classes, one linear layer per kind of class."""

    def __init__(self, tower: SiglipVisionModel, words: nn.EmbeddingBag, names: Sequence[Sequence[BatchEncoding]]):
        super().__init__()
        self.tower, self.words = tower, words
        self.names = names  # of each language, of each kind of class
        size = tower.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(size, size) for _ in names[0])

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Pixels `(batch, 3, height, width)` and labels `(batch, kinds, patches)` to a loss, in a random language."""
        patches = self.tower(pixel_values).last_hidden_state  # (batch, patches, dimensions)
        language = self.names[random.choice([0, 0, *range(len(self.names))])]  # the first, English, most often
        loss = 0
        for kind, (head, names) in enumerate(zip(self.heads, language, strict=True)):
            offsets = torch.tensor([0, *map(len, names["input_ids"][:-1])]).cumsum(0)
            classes = self.words(torch.tensor(list(itertools.chain(*names["input_ids"]))), offsets)
            scores = (head(patches) @ classes.T).float()  # (batch, patches, classes)
            loss = loss + cross_entropy(scores.transpose(1, 2), labels[:, kind], ignore_index=UNKNOWN)
        return {"loss": loss}


@dataclass
class ImageCollator:
    """Stack images and labels."""

    processor: SiglipImageProcessor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = self.processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def anew(
    texts: Sequence[str], vocabulary: int
) -> tuple[SiglipVisionModel, SiglipImageProcessor, PreTrainedTokenizerBase, nn.EmbeddingBag]:
    """A random tower and random words, with a tokenizer trained on the texts."""
    config = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=PIXELS,
        patch_size=PIXELS // GRID,  # a patch is a cell
        vision_use_head=False,
        attn_implementation="eager",  # its backward is twice as fast here as that of fused attention
    )
    processor = SiglipImageProcessor(
        size={"height": PIXELS, "width": PIXELS}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    tokenizer = train_tokenizer(texts, vocabulary)
    words = nn.EmbeddingBag(len(tokenizer), config.hidden_size)
    nn.init.normal_(words.weight, std=config.hidden_size**-0.5)
    return SiglipVisionModel(config), processor, tokenizer, words


def of_backbone(
    folder: str,
) -> tuple[SiglipVisionModel, SiglipImageProcessor, PreTrainedTokenizerBase, nn.EmbeddingBag]:
    """The tower of a backbone and its words, frozen, since its language model knows them as they are."""
    backbone = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    processor = LlavaProcessor.from_pretrained(folder)
    words = nn.EmbeddingBag.from_pretrained(backbone.get_input_embeddings().weight.detach(), freeze=True)
    return backbone.model.vision_tower, processor.image_processor, processor.tokenizer, words


def main(script: ScriptArguments, args: TrainingArguments) -> None:
    set_seed(args.seed)
    if script.model_name_or_path is None:
        with args.main_process_first():
            stored = openmoji_conversations("train", script.texts, seed=args.seed).with_format(None)
        tower, processor, tokenizer, words = anew([*stored["prompt"], *stored["answer"]], script.vocabulary)
    else:
        tower, processor, tokenizer, words = of_backbone(script.model_name_or_path)
    classes = Classes()
    names = [[tokenizer(of_kind) for of_kind in classes.names(language)] for language in LANGUAGES]
    trainer = Trainer(
        PatchClassifier(tower, words, names),
        args,
        train_dataset=LabelledImages(classes, script.num_rows, script.emoji, args.seed),
        data_collator=ImageCollator(processor),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        tower.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        tokenizer.save_pretrained(args.output_dir)
        save_file(words.state_dict(), f"{args.output_dir}/words.safetensors")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
