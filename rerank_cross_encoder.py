"""The files with which sentence-transformers loads a reranker as a `CrossEncoder`."""

import json
import logging
from copy import copy
from pathlib import Path

from transformers import ProcessorMixin

from .judging import PAIRWISE_PROMPT, label_tokens, prompt_frame
from .processing_unime import BREAK_UP


logger = logging.getLogger(__name__)

_HEAD = "{%- set reranker = "  # identifies the template

# Renders the pair of a `CrossEncoder`, whose roles are "query" and "document", as `pairwise_messages` does, and any
# other conversation as the backbone. Control tokens inside texts are broken up by a space.
_TEMPLATE = "{%- set reranker = RERANKER -%}" + BREAK_UP.replace("frame.", "reranker.")
_TEMPLATE += """\
{%- macro parts(message) -%}
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- for part in content if part['type'] == 'image' -%}{{- reranker.image -}}{%- endfor -%}
{%- for part in content if part['type'] == 'text' -%}{{- break_up(part['text']) -}}{%- endfor -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'query' -%}
{{- reranker.start ~ reranker.question ~ 'Query:' ~ parts(messages[0]) ~ 'Candidate:' ~ parts(messages[1]) -}}
{{- reranker.end -}}
{%- else -%}
BACKBONE
{%- endif -%}
"""


def pair_template(processor: ProcessorMixin) -> str:
    """Return the chat template of a backbone that also renders the pairs of a `CrossEncoder`.

    Args:
        processor (`ProcessorMixin`): Processor with the backbone's template.
    """
    template = processor.chat_template or ""
    if template.startswith(_HEAD):
        return template
    frame = prompt_frame(processor)
    reranker = {name: frame[name] for name in ("start", "image", "end", "control")} | {"question": PAIRWISE_PROMPT}
    return _TEMPLATE.replace("RERANKER", json.dumps(reranker, ensure_ascii=False)).replace("BACKBONE", template)


def save_with_cross_encoder(processor: ProcessorMixin, directory: str | Path) -> None:
    """Save a processor, and the files with which sentence-transformers loads the folder as a `CrossEncoder`.

    A `CrossEncoder` then predicts the probability of "Yes", like [`UniMEReranker`]. It takes texts, images and
    `{"image": ..., "text": ...}` without an instruction.

    Args:
        processor (`ProcessorMixin`): Processor of the reranker.
        directory (`str` or `Path`): Folder of the reranker.
    """
    try:
        yes, no = label_tokens(processor)
    except ValueError as error:
        logger.warning("%s will not load as a CrossEncoder: %s", directory, error)
        processor.save_pretrained(directory)
        return
    saved = copy(processor)
    saved.chat_template = pair_template(processor)
    saved.save_pretrained(directory)
    forward = {"method": "forward", "method_output_name": "logits"}
    transformer = {
        "transformer_task": "any-to-any",
        "modality_config": {"text": forward, "image": forward, "message": forward | {"format": "structured"}},
        "module_output_name": "causal_logits",
    }
    package = "sentence_transformers"
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{package}.base.modules.transformer.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_LogitScore",
                "type": f"{package}.cross_encoder.modules.logit_score.LogitScore",
            },
        ],
        "sentence_bert_config.json": transformer,
        "1_LogitScore/config.json": {
            "true_token_id": yes,
            "false_token_id": no,
            "module_input_name": "causal_logits",
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
            "prompts": {},
            "default_prompt_name": None,
            "requirements": {
                "sentence-transformers": {
                    "specifier": ">=6.2",
                    "reason": "pairs are rendered by the chat template",
                }
            },
        },
    }
    for name, content in files.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


__all__ = ["pair_template", "save_with_cross_encoder"]
