"""Training arguments that name no secret and no home folder in the files that `push_to_hub` uploads."""

from copy import deepcopy
from typing import Any

from transformers import TrainingArguments

from ..checkpoint import redact_home


class PublishableArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] whose pickle has no Hub token, and `~` in place of the home folder.

    `Trainer` pickles its arguments into the folders that `push_to_hub` uploads.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = {name: redact_home(value) if isinstance(value, str) else value for name, value in vars(self).items()}
        return state | {"hub_token": None}

    def __copy__(self) -> "PublishableArguments":
        # Copies in this process keep the token and the paths.
        copied = object.__new__(type(self))
        copied.__dict__ |= vars(self)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "PublishableArguments":
        copied = object.__new__(type(self))
        copied.__dict__ |= deepcopy(vars(self), memo)
        return copied
