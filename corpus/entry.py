"""An entry of a corpus: what to embed, and why it cannot be embedded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..data.image_files import read_image, read_image_bytes


@dataclass(frozen=True)
class Entry:
    """One entry of a corpus.

    Args:
        id (`str`): Identifier, unique within the corpus.
        text (`str`, *optional*): Text; one that contains only white space counts as missing.
        image (`str` or `bytes`, *optional*): Path of the image, or the encoded image (PNG, JPEG, ...).
        metadata (`dict`, *optional*): Other values of the entry, as JSON values.
        problem (`str`, *optional*): Why the entry cannot be embedded, if that was noticed when the corpus was read.
    """

    id: str
    text: str | None = None
    image: str | bytes | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def content(self) -> str:
        """Return a 128-bit hex digest of what the model will see: the text, and the bytes of the image file.

        Raises:
            ValueError: The entry is empty, or it cannot be read; the message names the entry.
        """
        text = self._checked_text()
        encoded = b"" if text is None else b"+" + text.encode()
        image = b"" if self.image is None else self._image_bytes()
        digest = hashlib.blake2b(len(encoded).to_bytes(8, "big") + encoded, digest_size=16)
        digest.update(image)
        return digest.hexdigest()

    def item(
        self, instruction: str | None = None, draft: Callable[[Image.Image], None] | None = None
    ) -> dict[str, Any]:
        """Return the entry as an item for `UniMEModel.encode`, with its image as RGB.

        Args:
            instruction (`str`, *optional*): Instruction of the item.
            draft (`Callable`, *optional*): Called with the opened image before it is decoded, see [`draft_for`].

        Raises:
            ValueError: The entry has neither text nor image, or one of them cannot be read; the message names the
                entry.
        """
        text = self._checked_text()
        item: dict[str, Any] = {} if text is None else {"text": text}
        if self.image is not None:
            path = None if isinstance(self.image, bytes) else self.image
            stored = {"bytes": self._image_bytes(), "path": path}
            item["image"] = read_image(stored, f"entry {self.id!r}", draft=draft)
        return item if instruction is None else item | {"instruction": instruction}

    def _checked_text(self) -> str | None:
        if self.problem is not None:
            raise self._error(self.problem)
        text = self.text if self.text is not None and self.text.strip() else None
        if text is None and self.image is None:
            raise self._error("it has neither a text nor an image: add one of them or remove it")
        path = self.image if isinstance(self.image, str) else None
        for name, value in (("id", self.id), ("text", text), ("path", path)):
            try:
                (value or "").encode()
            except UnicodeEncodeError as error:
                raise self._error(f"its {name} is not valid Unicode at character {error.start}: fix it") from None
        return text

    def _image_bytes(self) -> bytes:
        if isinstance(self.image, bytes):
            if not self.image:
                raise self._error("its image is empty: replace it or remove the entry")
            return self.image
        try:
            return read_image_bytes(Path(cast(str, self.image)))
        except ValueError as error:
            raise self._error(f"its image {self.image} {error} or remove the entry") from None

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"entry {self.id!r}: {reason}")
