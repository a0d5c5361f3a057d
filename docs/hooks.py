"""Hooks of MkDocs: pages from files of the repository, formulas as MathML, and docstrings in Hugging Face's format."""

import posixpath
import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parents[1]
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "studies/README.md": "studies.md",
    "recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\(([^)\s#]+)(#[^)]*)?\)")
TYPE = re.compile(r"<code>((?:\[?`|[^<]*\*optional)[^<]*)</code>")
DEFAULT = re.compile(r", defaults to .*", flags=re.DOTALL)
REFERENCE = re.compile(r"\[<code>(?:~[\w.]+\.)?([^<]*)</code>\]")
CLASS = re.compile(r"(?<!\w)\[(?:~[\w.]+\.)?(\w+)\]")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES` and the images that they show."""
    for source, page in PAGES.items():
        text, images = rewrite_links(source)
        files.append(File.generated(config, page, content=text))
        for image in images:
            if files.get_file_from_path(image) is None:
                files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    return files


def rewrite_links(source: str) -> tuple[str, set[str]]:
    """Make the links of a repository file fit the site.

    Links to files that are not pages become plain text, since the site cannot show them.

    Args:
        source (`str`): Path of a Markdown file in the repository.

    Returns:
        `tuple[str, set[str]]`: The text, and the paths of the images in it.
    """
    images = set()

    def rewrite(match: re.Match) -> str:
        is_image, label, target, anchor = match.groups()
        label = LINK.sub(rewrite, label)
        if target.startswith(("http:", "https:", "mailto:")):
            return f"{is_image}[{label}]({target}{anchor or ''})"
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            return f"[{label}]({PAGES[path]}{anchor or ''})"
        if path.startswith("docs/") and not is_image:
            return f"[{label}]({path.removeprefix('docs/')}{anchor or ''})"
        if Path(path).suffix in (".png", ".svg", ".webp") and (ROOT / path).is_file():
            path = path.removeprefix("docs/")
            images.add(path)
            return f"{is_image}[{label}]({path})"
        return label

    return LINK.sub(rewrite, (ROOT / source).read_text()), images


def on_page_content(html: str, **_: object) -> str:
    """Render formulas as MathML, which needs no script, and the types and references of docstrings as plain code."""
    html = FORMULA.sub(
        lambda match: convert(unescape(match[2]), display="block" if match[1] == "div" else "inline"), html
    )
    # "`float`, *optional*, defaults to `0.1`": a column of the table has the default already.
    html = TYPE.sub(lambda match: f"<code>{_plain_type(match[1])}</code>", html)
    return REFERENCE.sub(r"<code>\1</code>", html)


def _plain_type(text: str) -> str:
    return CLASS.sub(r"\1", DEFAULT.sub("", text).replace("`", "").replace("*", ""))
