"""The theme of Gradio's components, in the colours of UniME's reports; `style.css` styles the rest."""

from pathlib import Path

import gradio as gr


STYLE_SHEET = Path(__file__).with_name("style.css")
# Only system fonts, so that the page requests nothing from other hosts.
SANS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "DejaVu Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "DejaVu Sans Mono", "Consolas", "monospace")
PAPER, CARD, INK, SOFT, HAIR, ACCENT = "#faf8f4", "#ffffff", "#1d1b18", "#6d675e", "#e6e1d8", "#d1432b"
DARK_PAPER, DARK_CARD, DARK_INK, DARK_SOFT, DARK_HAIR = "#161513", "#201f1c", "#f0ece4", "#a39c90", "#35322d"


def theme() -> gr.themes.Base:
    """Return Gradio's base theme with these colours, light and dark."""
    base = gr.themes.Base(
        primary_hue="red",
        neutral_hue="stone",
        radius_size="lg",
        font=[gr.themes.Font(name) for name in SANS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )
    return base.set(
        body_background_fill=PAPER,
        body_background_fill_dark=DARK_PAPER,
        body_text_color=INK,
        body_text_color_dark=DARK_INK,
        body_text_color_subdued=SOFT,
        body_text_color_subdued_dark=DARK_SOFT,
        background_fill_primary=CARD,
        background_fill_primary_dark=DARK_CARD,
        background_fill_secondary=PAPER,
        background_fill_secondary_dark=DARK_PAPER,
        border_color_primary=HAIR,
        border_color_primary_dark=DARK_HAIR,
        block_background_fill=CARD,
        block_background_fill_dark=DARK_CARD,
        block_border_color=HAIR,
        block_border_color_dark=DARK_HAIR,
        block_label_text_color=SOFT,
        block_label_text_color_dark=DARK_SOFT,
        block_title_text_color=SOFT,
        block_title_text_color_dark=DARK_SOFT,
        input_background_fill=CARD,
        input_background_fill_dark=DARK_CARD,
        input_border_color=HAIR,
        input_border_color_dark=DARK_HAIR,
        color_accent=ACCENT,
        slider_color=ACCENT,
        loader_color=ACCENT,
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=ACCENT,
        button_primary_background_fill_hover="#b93822",
        button_primary_background_fill_hover_dark="#b93822",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill=CARD,
        button_secondary_background_fill_dark=DARK_CARD,
        button_secondary_border_color=HAIR,
        button_secondary_border_color_dark=DARK_HAIR,
    )
