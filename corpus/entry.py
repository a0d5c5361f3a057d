"""One thing to embed: its id, its text, its image and what else is known of it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.image_files import read_image, read_image_bytes


@dataclass(frozen=True)
class Entry:
    """One thing to embed.

    Args:
        id (`str`): Its name; no other entry of the corpus has it.
        text (`str`, *optional*): Its text. One of white space alone counts as none.
        image (`str` or `bytes`, *optional*): Path of its image, or the encoded image (PNG, JPEG, ...).
        metadata (`dict`): Everything else that is known of it, as JSON values.
        problem (`str`, *optional*): Why it cannot be embedded, where that was seen as the corpus was read.
    """

    id: str
    text: str | None = None
    image: str | bytes | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def content(self) -> str:
        """Hex digest (128 bits) of what the model will see: the text, and the bytes of the image's file.

        Raises:
            ValueError: There is nothing to see, or it cannot be read; the message names the entry.
        """
        text = self._checked_text()
        encoded = b"" if text is None else b"+" + text.encode()
        image = b"" if self.image is None else self._encoded_image()
        digest = hashlib.blake2b(len(encoded).to_bytes(8, "big") + encoded, digest_size=16)
        digest.update(image)
        return digest.hexdigest()

    def item(self, instruction: str | None = None) -> dict[str, Any]:
        """The entry as `UniMEModel.encode` takes it, its image as the model sees it.

        Args:
            instruction (`str`, *optional*): What is asked of it.

        Raises:
            ValueError: There is neither text nor image, or one of them cannot be read; the message names the entry.
        """
        text = self._checked_text()
        item = {} if text is None else {"text": text}
        if self.image is not None:
            path = None if isinstance(self.image, bytes) else self.image
            item["image"] = read_image({"bytes": self._encoded_image(), "path": path}, f"entry {self.id!r}")
        return item if instruction is None else item | {"instruction": instruction}

    def _checked_text(self) -> str | None:
        if self.problem is not None:
            raise self._error(self.problem)
        text = self.text if self.text is not None and self.text.strip() else None
        if text is None and self.image is None:
            raise self._error("it has neither a text nor an image: give it one of them, or remove it")
        path = self.image if isinstance(self.image, str) else None
        for name, value in (("id", self.id), ("text", text), ("path", path)):
            try:
                (value or "").encode()
            except UnicodeEncodeError as error:
                raise self._error(f"its {name} is not valid Unicode at character {error.start}: mend it") from None
        return text

    def _encoded_image(self) -> bytes:
        if isinstance(self.image, bytes):
            if not self.image:
                raise self._error("its image is empty: replace it or remove the entry")
            return self.image
        try:
            return read_image_bytes(Path(self.image))
        except ValueError as error:
            raise self._error(f"its image {self.image} {error} or remove the entry") from None

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"entry {self.id!r}: {reason}")
