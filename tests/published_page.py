"""The tables of `docs/guides/published-embedders.md`, made from the presets; run it to write them into the page."""

import json
import re
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from unime.presets import Preset, all_presets


PAGE = Path(__file__).parents[1] / "docs" / "guides" / "published-embedders.md"
POOLED = {"last": "last token", "mean": "mean of all tokens"}
ITEMS = {
    "text": ("text",),
    "image": ("image",),
    "image, text": ("image", "text"),
    "instruction, text": ("instruction", "text"),
    "instruction, image": ("instruction", "image"),
    "instruction, image, text": ("instruction", "image", "text"),
}


def prompt(preset: Preset, parts: tuple[str, ...]) -> str | None:
    """Return the prompt of an item with these parts, or None if the family has none for it."""
    content = [{"type": part, part: "{text}"} for part in parts if part != "instruction"]
    turns = [{"role": "user", "content": content}]
    if "instruction" in parts:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": "{instruction}"}]})
    try:
        ((text,), _) = render_jinja_template([turns], chat_template=preset.chat_template(()))
    except TemplateError:
        return None
    return text


def families() -> str:
    """Return the table of the families."""
    lines = [
        "| preset | Hub ids | pooled | positions | image size | certainty | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset in all_presets():
        ids = ", ".join(f"`{pattern}`" for pattern in preset.ids)
        if preset.refused:
            lines.append(f"| refused: {preset.family} | {ids} | | | | {preset.certainty} | {preset.source} |")
            continue
        ids += f" (adapters of {preset.base})" if preset.base else ""
        size = f"`{json.dumps(preset.image_size)}`" if preset.image_size else "the processor's"
        ends_in_token = str(prompt(preset, ("text",))).endswith("<|endoftext|>")
        pooled = "`<\\|endoftext\\|>`" if ends_in_token else POOLED[preset.pooling]
        cells = (f"`{preset.name}`", ids, pooled, preset.positions, size, preset.certainty, preset.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def refusals() -> str:
    """Return the reason of each refused family."""
    return "\n".join(f"- **{preset.family}**: {preset.refused}." for preset in all_presets() if preset.refused)


def prompts() -> str:
    """Return a table of the prompts of each family."""
    sections = []
    for preset in all_presets():
        if preset.refused:
            continue
        lines = [f"### {preset.family}", "", "| item | prompt |", "| --- | --- |"]
        for name, parts in ITEMS.items():
            text = prompt(preset, parts)
            if text is not None:
                shown = text.replace("\n", "⏎").replace("|", "\\|")
                lines.append(f"| {name} | `` {shown} `` |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def page() -> str:
    """Return the page with its tables as they follow from the presets."""
    text = PAGE.read_text()
    for name, content in {"families": families(), "refusals": refusals(), "prompts": prompts()}.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text = re.sub(
            pattern, lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
