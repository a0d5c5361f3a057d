"""The web page: search images by text, by image or by both, see similarities, compare two checkpoints.

    python app.py                                        # the images of the OpenMoji world, checkpoints/unime-tiny
    python app.py --model FOLDER_OR_ID --compare FOLDER_OR_ID
    python app.py --index INDEX --compare OTHER_INDEX    # what `unime index` made

A Space of the Hub runs this file as it is (`app_file: app.py`, see model_cards/space.md).
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from PIL import Image

from unime.checkpoint import PROMPTS
from unime.page import examples
from unime.page.collection import Collection, LazyCollection, open_index, open_openmoji
from unime.page.drawing import render_heat_map, render_hits
from unime.page.theme import theme
from unime.page.uploads import image_field, open_upload


CHECKPOINTS = Path(__file__).parent / "checkpoints"
STYLE = Path(examples.__file__).parent / "style.css"
AUTOMATIC = "the one that fits what is given"
MOST_COMPARED = 12  # texts, and images, of a heat map
LONGEST = 4000  # characters of a query, of its instruction, and of a heat map's texts
WAITING = 256  # requests in line; who comes then is told that the page is busy
SESSIONS = 256  # of which Gradio remembers the fields, some 100 kB each; nothing here needs them again
KEPT = 3600  # seconds that what visitors upload stays on disk
PRIVATE = {"api_visibility": "private"}  # programs ask `unime serve`
NO_PROGRESS = gr.Progress()

Sample = tuple[str, Image.Image | None]  # text and image of a query


def chosen_instruction(choice: str | None) -> str | None:
    """The instruction for what stands in the field: None for the automatic one, a named one, or the text itself."""
    if choice is None or choice.strip() in ("", AUTOMATIC):
        return None
    return PROMPTS.get(choice, choice)


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def build(first: Collection, second: LazyCollection | None, world: bool) -> gr.Blocks:
    """The page.

    Args:
        first ([`Collection`]): What is searched.
        second ([`LazyCollection`], *optional*): What it is compared with; there is no such tab without.
        world (`bool`): Whether it is the OpenMoji world, for which there are example queries.
    """
    samples = examples.queries() if world else {}
    with gr.Blocks(title="UniME", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as demo:
        gr.HTML(_masthead(first))
        with gr.Tab("Search"):
            _search_tab(first, samples)
        with gr.Tab("Similarity"):
            _similarity_tab(first)
        if second is not None:
            with gr.Tab("Compare"):
                _compare_tab(first, second, samples)
        gr.HTML(_colophon(world))
    return demo.queue(max_size=WAITING)


def _masthead(collection: Collection) -> str:
    model = collection.model
    size = f"{model.num_parameters() / 1e6:,.1f} M parameters, {model.config.hidden_size} dimensions"
    return f"""<header class="masthead"><p class="kicker">UniME · {escape(collection.title)} · {size}</p>
        <h1>One model for words, images, and both together</h1>
        <p class="standfirst">{len(collection.store):,} entries lie in one space with your query. Describe an image,
        show one, or show one and say what is to be different.</p></header>"""


def _colophon(world: bool) -> str:
    licence = (
        """Images: <a href="https://openmoji.org" target="_blank" rel="noopener">OpenMoji</a>, CC BY-SA 4.0.
        The small model knows this world and nothing of photographs."""
        * world
    )
    return f"""<footer class="colophon">{licence} Scores are cosines of unit vectors.</footer>"""


class Query(NamedTuple):
    """The part of a tab in which a query is given."""

    fields: list[gr.components.Component]  # text, image, instruction, number of results
    button: gr.Button
    chips: dict[gr.Button, Sample]


def _query(action: str, samples: dict[str, Sample], opening: str = "") -> Query:
    text = gr.Textbox(opening, label="Text", placeholder="What are you looking for?", max_length=LONGEST, max_lines=4)
    image = image_field(label="Image", sources=["upload", "clipboard"], height=190, buttons=[])
    with gr.Accordion("Instruction and number of results", open=False):
        instruction = gr.Dropdown(
            [AUTOMATIC, *[(f"{name}: {asked or '(one-word prompt)'}", name) for name, asked in PROMPTS.items()]],
            value=AUTOMATIC,
            label="Instruction",
            info="Choose one, or write your own.",
            allow_custom_value=True,
        )
        count = gr.Slider(1, 48, value=12, step=1, label="Results")
    button = gr.Button(action, variant="primary")
    with gr.Row(elem_classes="chips"):
        chips = {gr.Button(title, size="sm", min_width=60, scale=0): sample for title, sample in samples.items()}
    return Query([text, image, instruction, count], button, chips)


def _on_query(query: Query, answer: Callable, outputs: list[gr.HTML]) -> None:
    text, image, *_ = query.fields
    gr.on([query.button.click, text.submit, image.upload], answer, query.fields, outputs, **PRIVATE)
    for chip, sample in query.chips.items():
        chip.click(lambda sample=sample: sample, None, [text, image], **PRIVATE).then(
            answer, query.fields, outputs, **PRIVATE
        )


def _search_tab(collection: Collection, samples: dict[str, Sample]) -> None:
    opening = next(iter(samples.values()), ("", None))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            query = _query("Search", samples, opening[0])
        with gr.Column(scale=5, min_width=300):
            found = gr.HTML(render_hits(collection.search(*opening)) if samples else "", elem_id="found")

    def answer(text: str, image: Image.Image | None, choice: str, count: int) -> str:
        if not _given(text, image, choice):
            return gr.skip()
        with _one_sentence():
            return render_hits(collection.search(text, image, chosen_instruction(choice), int(count)))

    _on_query(query, answer, [found])


def _compare_tab(first: Collection, second: LazyCollection, samples: dict[str, Sample]) -> None:
    hint = f"""<p class="hint">The same query in {escape(first.title)} and in {escape(Path(second.source).name)}, side
        by side; what only one finds is marked. The second is opened for the first query: that takes a moment.</p>"""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            query = _query("Compare", samples)
        with gr.Column(scale=5, min_width=300):
            gr.HTML(hint)
            with gr.Row(elem_classes="sides"):
                columns = [gr.HTML(elem_id=name, min_height=260) for name in ("first", "second")]

    def answer(
        text: str, image: Image.Image | None, choice: str, count: int, progress: gr.Progress = NO_PROGRESS
    ) -> tuple[str, str]:
        if not _given(text, image, choice):
            return gr.skip()
        with _one_sentence():
            other = second(lambda stage, done, total: progress((done, total), desc=stage))
            here, there = (one.search(text, image, chosen_instruction(choice), int(count)) for one in (first, other))
            return render_hits(here, first.title, there.hits), render_hits(there, other.title, here.hits)

    _on_query(query, answer, columns)


def _similarity_tab(collection: Collection) -> None:
    samples = examples.heat_maps()
    texts, images = next(iter(samples.values()))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            lines = gr.Textbox("\n".join(texts), label="Texts, one a line", lines=6, max_lines=12, max_length=LONGEST)
            gallery = gr.Gallery(
                images,
                label="Images",
                columns=3,
                height=250,
                object_fit="contain",
                format="png",
                interactive=True,
                sources=["upload", "clipboard"],
                buttons=[],
            )
            button = gr.Button("Draw the heat map", variant="primary")
            with gr.Row(elem_classes="chips"):
                chips = {
                    gr.Button(title, size="sm", min_width=60, scale=0): sample for title, sample in samples.items()
                }
        with gr.Column(scale=5, min_width=300):
            opening = render_heat_map(texts, images, collection.similarities(texts, images))
            heat_map = gr.HTML(opening, elem_id="heat-map")

    def answer(text: str, uploads: list[tuple[str, str | None]] | None) -> str:
        texts, paths = lines_of(text or ""), [path for path, _ in uploads or []]
        if not texts or not paths:
            gr.Warning("Give a line of text and an image at least.")
            return gr.skip()
        if not _short(text):
            return gr.skip()
        if max(len(texts), len(paths)) > MOST_COMPARED:
            gr.Warning(f"Give at most {MOST_COMPARED} texts and {MOST_COMPARED} images.")
            return gr.skip()
        images = [open_upload(path) for path in paths]
        with _one_sentence():
            return render_heat_map(texts, images, collection.similarities(texts, images))

    gr.on([button.click], answer, [lines, gallery], heat_map, **PRIVATE)
    for chip, (words, shown) in chips.items():
        chip.click(lambda words=words, shown=shown: ("\n".join(words), shown), None, [lines, gallery], **PRIVATE).then(
            answer, [lines, gallery], heat_map, **PRIVATE
        )


def _given(text: str | None, image: Image.Image | None, choice: str | None) -> bool:
    if not (text or "").strip() and image is None:
        gr.Warning("Type a text or give an image first.")
        return False
    return _short(text) and _short(choice)


def _short(text: str | None) -> bool:
    """Whether a text is no longer than its field takes: a program that speaks to the page need not mind the field."""
    if len(text or "") > LONGEST:
        gr.Warning(f"Give at most {LONGEST:,} characters.")
        return False
    return True


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show what is wrong with the input in the page, which takes it as HTML, and no traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None


def _in_terminal(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done:,} of {total:,} images", end="" if done < total else "\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the collections, then the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of the model (default: checkpoints/unime-tiny)")
    parser.add_argument(
        "--compare", help="a second model, or a second index with --index (default: checkpoints/tiny-backbone)"
    )
    parser.add_argument("--index", help="search this folder, made by `unime index`, not the OpenMoji world")
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    chosen = parser.parse_args(arguments)
    if chosen.index and chosen.model:
        parser.error("an index is searched with the model that made it: leave --model out")
    try:
        if chosen.index:
            first = open_index(chosen.index)
            second = LazyCollection(open_index, chosen.compare) if chosen.compare else None
        else:
            first = open_openmoji(chosen.model or str(CHECKPOINTS / "unime-tiny"), _in_terminal)
            second = LazyCollection(open_openmoji, chosen.compare or str(CHECKPOINTS / "tiny-backbone"))
        build(first, second, world=not chosen.index).launch(
            server_name=chosen.host,
            server_port=chosen.port,
            theme=theme(),
            css_paths=STYLE,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            state_session_capacity=SESSIONS,
            max_file_size="25mb",
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
