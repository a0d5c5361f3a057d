"""The web page: search images by text, by image or by both, show similarities, and compare two checkpoints.

    python app.py                                        # the OpenMoji images, checkpoints/unime-tiny
    python app.py --model FOLDER_OR_ID --compare FOLDER_OR_ID
    python app.py --index INDEX --compare OTHER_INDEX    # indexes made by `unime index`

A Space of the Hub runs this file as it is (`app_file: app.py`, see model_cards/space.md).
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from PIL import Image

from unime.checkpoint import PROMPTS
from unime.cli.options import note_demonstration
from unime.page.collection import Collection, LazyCollection, open_index, open_openmoji
from unime.page.drawing import render_comparison, render_heat_map, render_hits
from unime.page.theme import STYLE_SHEET, theme
from unime.page.uploads import image_field, open_upload
from unime.reranker import UniMEReranker


CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
DROP_IMAGE = "Drop an image here\nor click to choose one"
AUTOMATIC = "automatic: chosen by the kind of query"
MAX_HEAT_MAP_ITEMS = 12  # texts, and images
MAX_CHARACTERS = 4000  # of a query, of its instruction, and of a heat map's texts
MAX_QUEUED_REQUESTS = 256  # later visitors are told that the page is busy
MAX_SESSIONS = 256  # Gradio keeps the fields of a session, about 100 kB each; the page does not need them
UPLOAD_SECONDS = 3600  # time until an uploaded file is deleted
PRIVATE = {"api_visibility": "private"}  # the API is `unime serve`
NO_PROGRESS = gr.Progress()

QueryExample = tuple[str, Image.Image | None]  # text and image
HeatMapExample = tuple[Sequence[str], Sequence[Image.Image]]  # texts and images


def selected_instruction(choice: str | None) -> str | None:
    """Return the instruction for the field's value: `None` for the automatic one, a named prompt, or the text."""
    if choice is None or choice.strip() in ("", AUTOMATIC):
        return None
    return PROMPTS.get(choice, choice)


def non_empty_lines(text: str) -> list[str]:
    """Return the lines of a text that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def build(
    first: Collection, second: LazyCollection | None, openmoji: bool, reranker: UniMEReranker | None = None
) -> gr.Blocks:
    """Build the page.

    Args:
        first ([`Collection`]): Collection to search.
        second ([`LazyCollection`], *optional*): Collection to compare with; without it there is no comparison tab.
        openmoji (`bool`): Whether the OpenMoji images are searched, for which the page has examples.
        reranker ([`UniMEReranker`], *optional*): What orders the results where a visitor wants it.
    """
    queries, heat_maps = {}, {}
    if openmoji:
        from unime.page import examples  # needs the extra `openmoji`

        queries, heat_maps = examples.queries(), examples.heat_maps()
    name = "OpenMoji" if openmoji else first.index.folder.resolve().name
    with gr.Blocks(
        title=f"{name} · UniME", analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)
    ) as demo:
        gr.HTML(_header(first, name, openmoji))
        with gr.Tab("Search"):
            _search_tab(first, queries, reranker)
        with gr.Tab("Similarity"):
            _similarity_tab(first, heat_maps)
        if second is not None:
            with gr.Tab("Compare"):
                _compare_tab(first, second, queries)
        gr.HTML(_footer(first, openmoji))
    return demo.queue(max_size=MAX_QUEUED_REQUESTS)


def _header(collection: Collection, name: str, openmoji: bool) -> str:
    """Return the masthead; the style sheet makes it smaller after the first search."""
    model = collection.model
    size = f"{model.num_parameters() / 1e6:,.1f} M parameters, {model.config.hidden_size} dimensions"
    entries = len(collection.index)
    searched = (
        f"{entries:,} OpenMoji drawings" if openmoji else f"{entries:,} {'entry' if entries == 1 else 'entries'}"
    )
    heading = "One embedding model for text and images" if openmoji else escape(name)
    world = "OpenMoji" if openmoji else "UniME"
    return f"""<header class="masthead"><p class="kicker">{world} · {escape(collection.title)} · {size}</p>
        <h1>{heading}</h1>
        <p class="standfirst">Search {searched} by text, by image, or by an image and a text that says what to
        change.</p></header>"""


def _footer(collection: Collection, openmoji: bool) -> str:
    notes = "Scores are cosine similarities."
    if collection.title == "unime-tiny":
        notes += """ unime-tiny is a demonstration that was trained on drawings of emoji only: it does not understand
            photographs."""
    if openmoji:
        notes += """ Images: <a href="https://openmoji.org" target="_blank" rel="noopener">OpenMoji</a>,
            CC BY-SA 4.0."""
    return f"""<footer class="colophon">{notes}</footer>"""


class QueryForm(NamedTuple):
    """The part of a tab in which a query is entered."""

    fields: list[gr.components.Component]  # text, image, instruction, number of results
    button: gr.Button
    example_buttons: dict[gr.Button, QueryExample]


def _query_form(action: str, examples: dict[str, QueryExample], initial_text: str = "") -> QueryForm:
    text = gr.Textbox(
        initial_text, label="Text", placeholder="What are you looking for?", max_length=MAX_CHARACTERS, max_lines=4
    )
    image = image_field(label="Image", sources=["upload", "clipboard"], height=190, buttons=[], placeholder=DROP_IMAGE)
    with gr.Accordion("Instruction and number of results", open=False):
        prompts = [(f"{name}: {prompt or '(one-word prompt)'}", name) for name, prompt in PROMPTS.items()]
        instruction = gr.Dropdown(
            [AUTOMATIC, *prompts],
            value=AUTOMATIC,
            label="Instruction",
            info="Choose one or write your own.",
            allow_custom_value=True,
        )
        count = gr.Slider(1, 48, value=12, step=1, label="Results")
    button = gr.Button(action, variant="primary")
    return QueryForm([text, image, instruction, count], button, _example_buttons(examples))


def _example_buttons(examples: Mapping) -> dict:
    """Return a button for each example, given by title."""
    with gr.Row(elem_classes="chips"):
        return {gr.Button(title, size="sm", min_width=60, scale=0): example for title, example in examples.items()}


def _on_query(form: QueryForm, answer: Callable, outputs: list[gr.HTML]) -> None:
    text, image, *_ = form.fields
    gr.on([form.button.click, text.submit, image.upload], answer, form.fields, outputs, **PRIVATE)
    for button, example in form.example_buttons.items():
        button.click(lambda example=example: example, None, [text, image], **PRIVATE).then(
            answer, form.fields, outputs, **PRIVATE
        )


def _search_tab(
    collection: Collection, examples: dict[str, QueryExample], reranker: UniMEReranker | None = None
) -> None:
    text, image = next(iter(examples.values()), ("", None))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            form = _query_form("Search", examples, text)
            if reranker is not None:
                form.fields.append(gr.Checkbox(label="Rerank", info="Slower: a second model reads each result."))
        with gr.Column(scale=5, min_width=300):
            initial = f'<div class="welcome">{render_hits(collection.search(text, image))}</div>' if examples else ""
            results = gr.HTML(initial, elem_id="results")

    def answer(text: str, image: Image.Image | None, choice: str, count: int, rerank: bool = False) -> str:
        if not _is_valid_query(text, image, choice):
            return gr.skip()
        chosen = reranker if rerank else None
        with _show_errors():
            return render_hits(collection.search(text, image, selected_instruction(choice), int(count), chosen))

    _on_query(form, answer, [results])


def _compare_tab(first: Collection, second: LazyCollection, examples: dict[str, QueryExample]) -> None:
    hint = f"""<p class="hint">Compare the results of {escape(first.title)} and {escape(Path(second.source).name)}.
        Results that only one of them returns are marked. The second one is loaded at the first query, which takes a
        moment.</p>"""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            form = _query_form("Compare", examples)
        with gr.Column(scale=5, min_width=300):
            gr.HTML(hint)
            with gr.Row(elem_classes="sides"):
                outputs = [gr.HTML(elem_id=name, min_height=260) for name in ("first", "second")]

    def answer(
        text: str, image: Image.Image | None, choice: str, count: int, progress: gr.Progress = NO_PROGRESS
    ) -> tuple[str, str]:
        if not _is_valid_query(text, image, choice):
            return gr.skip()
        with _show_errors():
            other = second(lambda stage, done, total: progress((done, total), desc=stage))
            instruction = selected_instruction(choice)
            results = [side.search(text, image, instruction, int(count)) for side in (first, other)]
            left, right = render_comparison(results, [first.title, other.title])
            return left, right

    _on_query(form, answer, outputs)


def _similarity_tab(collection: Collection, examples: Mapping[str, HeatMapExample]) -> None:
    texts, images = next(iter(examples.values()), ((), ()))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            lines = gr.Textbox(
                "\n".join(texts), label="Texts, one per line", lines=6, max_lines=12, max_length=MAX_CHARACTERS
            )
            gallery = gr.Gallery(
                list(images),
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
            example_buttons = _example_buttons(examples)
        with gr.Column(scale=5, min_width=300):
            initial = render_heat_map(texts, images, collection.similarities(texts, images)) if examples else ""
            heat_map = gr.HTML(initial, elem_id="heat-map")

    def answer(text: str, uploads: list[tuple[str, str | None]] | None) -> str:
        texts, paths = non_empty_lines(text or ""), [path for path, _ in uploads or []]
        if not texts or not paths:
            gr.Warning("Give at least one line of text and one image.")
            return gr.skip()
        if not _is_short(text):
            return gr.skip()
        if max(len(texts), len(paths)) > MAX_HEAT_MAP_ITEMS:
            gr.Warning(f"Give at most {MAX_HEAT_MAP_ITEMS} texts and {MAX_HEAT_MAP_ITEMS} images.")
            return gr.skip()
        images = [open_upload(path) for path in paths]
        with _show_errors():
            return render_heat_map(texts, images, collection.similarities(texts, images))

    gr.on([button.click], answer, [lines, gallery], heat_map, **PRIVATE)
    for example_button, (texts, images) in example_buttons.items():
        values = "\n".join(texts), images
        example_button.click(lambda values=values: values, None, [lines, gallery], **PRIVATE).then(
            answer, [lines, gallery], heat_map, **PRIVATE
        )


def _is_valid_query(text: str | None, image: Image.Image | None, choice: str | None) -> bool:
    if not (text or "").strip() and image is None:
        gr.Warning("Enter a text or upload an image first.")
        return False
    return _is_short(text) and _is_short(choice)


def _is_short(text: str | None) -> bool:
    """Return whether a text fits its field; programs can bypass the limit of the field itself."""
    if len(text or "") > MAX_CHARACTERS:
        gr.Warning(f"Give at most {MAX_CHARACTERS:,} characters.")
        return False
    return True


@contextmanager
def _show_errors() -> Iterator[None]:
    """Show errors of the input in the page, escaped for HTML and without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None


def _print_progress(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done:,} of {total:,} images", end="" if done < total else "\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the collections and start the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of the model (default: checkpoints/unime-tiny)")
    parser.add_argument(
        "--compare", help="second model, or with --index second index (default: checkpoints/tiny-backbone)"
    )
    parser.add_argument("--index", help="search this index, made by `unime index`, instead of the OpenMoji images")
    parser.add_argument("--rerank", help="reranker that orders the results where a visitor wants it")
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free port from 7860)")
    args = parser.parse_args(arguments)
    if args.index and args.model:
        parser.error("an index is searched with the model that it was made with: remove --model")
    try:
        if args.index:
            first = open_index(args.index)
            note_demonstration(first.index.record.checkpoint)
            second = LazyCollection(open_index, args.compare) if args.compare else None
        else:
            first = open_openmoji(args.model or str(CHECKPOINTS / "unime-tiny"), _print_progress)
            second = LazyCollection(open_openmoji, args.compare or str(CHECKPOINTS / "tiny-backbone"))
        reranker = UniMEReranker.from_pretrained(args.rerank, dtype="float32") if args.rerank else None
        build(first, second, not args.index, reranker).launch(
            server_name=args.host,
            server_port=args.port,
            theme=theme(),
            css_paths=STYLE_SHEET,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            state_session_capacity=MAX_SESSIONS,
            max_file_size="25mb",
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
