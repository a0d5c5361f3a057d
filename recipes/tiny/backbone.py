"""Pre-train the tiny backbone: a LLaVA of under 5 M parameters that learns to describe the OpenMoji world.

    torchrun --nproc_per_node 2 recipes/tiny/backbone.py --config recipes/tiny/backbone.yaml

UniME starts from a generative image-text model. This is the embedded stand-in for LLaVA: captions and questions of the
world's training split, language-model loss on the answers, the vision tower of `vision.py` frozen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
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

from unime.openmoji.dataset import openmoji_conversations


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
IGNORED = -100  # label of the tokens without a loss


@dataclass
class ScriptArguments:
    """What to train on, and where from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Backbone whose language model goes on, with a tower further trained."}
    )
    num_rows: int = field(default=300_000, metadata={"help": "Conversations of the training split."})
    vision: str = field(
        default="runs/tiny-vision",
        metadata={"help": "Tower, tokenizer and word embeddings of recipes/tiny/vision.py."},
    )


def build(
    tokenizer: PreTrainedTokenizerBase, images: SiglipImageProcessor, vision: SiglipVisionConfig, words: Tensor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA for a tower of this shape: trained words, random layers."""
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
        initializer_range=0.06,  # the usual 0.02 is for wider layers
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
        attn_implementation="eager",  # its backward is twice as fast here as that of fused attention
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.get_input_embeddings().load_state_dict({"weight": words})
    return llava, processor


class AnswerTrainer(Trainer):
    """A `Trainer` that computes logits where there is a loss only: here the vocabulary is the largest layer."""

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_
    ) -> Tensor:
        labels = inputs.pop("labels")[:, 1:]
        kept = labels != IGNORED
        return cross_entropy(model(**inputs, positions=kept).float(), labels[kept])


class AnswerLogits(torch.nn.Module):
    """A LLaVA whose forward gives the logits of the chosen positions, `(positions, vocabulary)`."""

    def __init__(self, llava: LlavaForConditionalGeneration):
        super().__init__()
        self.llava = llava

    def forward(self, positions: Tensor, **inputs: Tensor) -> Tensor:
        hidden = self.llava.model(**inputs, use_cache=False).last_hidden_state
        return self.llava.lm_head(hidden[:, :-1][positions])


@dataclass
class ConversationCollator:
    """Render prompt and answer with the chat template; only the answer's tokens carry a loss."""

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
        answers = [len(ids) + 1 for ids in self.processor.tokenizer([row["answer"] for row in rows])["input_ids"]]
        end = batch["attention_mask"].sum(dim=1)
        positions = torch.arange(batch["input_ids"].shape[1])
        asked = positions < (end - torch.tensor(answers))[:, None]
        batch["labels"] = batch["input_ids"].masked_fill(asked | (batch["attention_mask"] == 0), IGNORED)
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
    trainer.train()
    if trainer.is_world_process_zero():
        model.half().save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TrainingArguments)).parse_args_and_config())
