"""Pre-train the tiny backbone: a LLaVA with fewer than 5 M parameters that learns to describe OpenMoji images.

    torchrun --nproc_per_node 2 recipes/tiny/backbone.py --config recipes/tiny/backbone.yaml

UniME starts from a generative image-text model. This script trains a small stand-in for LLaVA on captions and
questions of the OpenMoji training split: language-model loss on the answers, with the vision tower of `vision.py`
frozen. The same command resumes an interrupted run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import TrlParser

from unime.checkpoint_safety import give_weights_the_umask
from unime.openmoji.dataset import openmoji_conversations
from unime.trainers.checkpointing import last_complete_checkpoint


TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' ~ message['role'] ~ '|>' -}}
{%- for part in message['content'] -%}
{{- '<image>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
IGNORED_LABEL = -100  # label of tokens without a loss


@dataclass
class ScriptArguments:
    """Training data and initial weights."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Backbone to continue from. Its vision tower is replaced by the one in `vision`."},
    )
    num_rows: int = field(default=300_000, metadata={"help": "Number of conversations of the training split."})
    vision: str = field(
        default="runs/tiny-vision",
        metadata={"help": "Output folder of recipes/tiny/vision.py: tower, tokenizer and word embeddings."},
    )


def build(
    tokenizer: PreTrainedTokenizerBase, images: SiglipImageProcessor, vision: SiglipVisionConfig, words: Tensor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build a LLaVA for a vision tower: trained word embeddings, random layers."""
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=3,
        max_position_embeddings=1024,
        initializer_range=0.06,  # the common 0.02 suits wider layers
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        attn_implementation="eager",  # on a CPU its backward pass is twice as fast at this length
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.get_input_embeddings().load_state_dict({"weight": words})
    return llava, processor


class AnswerTrainer(Trainer):
    """A `Trainer` that computes logits only at positions with a loss, as the vocabulary is the largest layer."""

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_
    ) -> Tensor:
        labels = inputs.pop("labels")[:, 1:]
        answers = labels != IGNORED_LABEL
        return cross_entropy(model(**inputs, positions=answers).float(), labels[answers])


class AnswerLogits(torch.nn.Module):
    """A LLaVA with a forward pass that returns the logits of given positions, `(positions, vocabulary)`."""

    def __init__(self, llava: LlavaForConditionalGeneration):
        super().__init__()
        self.model = llava.model  # without the head, whose weights are those of the embeddings

    def forward(self, positions: Tensor, **inputs: Tensor) -> Tensor:
        hidden = self.model(**inputs, use_cache=False).last_hidden_state
        return linear(hidden[:, :-1][positions], self.model.get_input_embeddings().weight)


@dataclass
class ConversationCollator:
    """Collator that renders prompts and answers with the chat template; only answer tokens have a loss."""

    processor: ProcessorMixin

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = []
        for row in rows:
            image = [] if row["image"] is None else [{"type": "image"}]
            prompts.append([{"role": "user", "content": image + [{"type": "text", "text": row["prompt"]}]}])
        rendered = self.processor.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
        full = [text + row["answer"] + "<|end|>" for text, row in zip(rendered, rows, strict=True)]
        images = [[] if row["image"] is None else [row["image"]] for row in rows]
        batch = self.processor(text=full, images=images if any(images) else None, padding=True, return_tensors="pt")
        answer_lengths = [
            len(ids) + 1 for ids in self.processor.tokenizer([row["answer"] for row in rows])["input_ids"]
        ]
        end = batch["attention_mask"].sum(dim=1)
        positions = torch.arange(batch["input_ids"].shape[1])
        in_prompt = positions < (end - torch.tensor(answer_lengths))[:, None]
        batch["labels"] = batch["input_ids"].masked_fill(in_prompt | (batch["attention_mask"] == 0), IGNORED_LABEL)
        return dict(batch)


def main(script: ScriptArguments, args: TrainingArguments) -> None:
    set_seed(args.seed)
    with args.main_process_first():
        dataset = openmoji_conversations("train", script.num_rows, seed=args.seed)
    stored = dataset.with_format(None)
    tower = SiglipVisionModel.from_pretrained(script.vision, dtype="float32")
    if script.model_name_or_path is None:
        model, processor = build(
            AutoTokenizer.from_pretrained(script.vision),
            SiglipImageProcessor.from_pretrained(script.vision),
            tower.config,
            load_file(f"{script.vision}/words.safetensors")["weight"],
        )
    else:
        model = LlavaForConditionalGeneration.from_pretrained(
            script.model_name_or_path, dtype="float32", attn_implementation="eager"
        )
        processor = LlavaProcessor.from_pretrained(script.model_name_or_path)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(stored["prompt"], stored["answer"], strict=True)]
    trainer = AnswerTrainer(
        AnswerLogits(model),
        args,
        train_dataset=dataset.add_column("length", lengths),
        data_collator=ConversationCollator(processor),
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if trainer.is_world_process_zero():
        model.half().save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        give_weights_the_umask(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
