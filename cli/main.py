"""Entry point of the command `unime`, which reports invalid input in one sentence."""

import sys

from ..extras import MissingExtraError, require_extra


def main() -> None:
    """Run the command; invalid input and missing extras give one sentence and status 2, not a traceback."""
    try:
        require_extra("cli", "typer", "rich")
        from .commands import app

        app(prog_name="unime")
    except (MissingExtraError, ValueError, OSError) as error:
        print(printable(f"unime: {error}"), file=sys.stderr)
        raise SystemExit(2) from None


def printable(text: str) -> str:
    """Return a text on one line without control characters, which an untrusted text might send to the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
