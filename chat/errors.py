"""The errors that a user meets; their text is shown to the user."""

from __future__ import annotations

import re

# A folder's path before a name, but no address such as https://huggingface.co/OWNER/NAME.
FOLDERS = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\"]+[\\/])+(?=[^\s\\/])")


class ChatError(Exception):
    """A question that cannot be answered."""


class MissingPictures(ChatError):
    """Pictures of a question that the server does not have, or no longer.

    Attributes:
        ids: Which.
    """

    def __init__(self, ids: list[str]) -> None:
        super().__init__("A picture is not on the server: pictures are kept for a day. Please send it again.")
        self.ids = ids

    def __reduce__(self) -> tuple:
        return MissingPictures, (self.ids,)


class PictureError(ChatError):
    """A file that cannot be used as a picture.

    Attributes:
        status: The HTTP status that says so: 413 too large, 415 no picture, 422 damaged.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return self.args[0]


class ModelError(Exception):
    """A model that the chat cannot serve; the message names it, and says what to do next."""


class HubUnreachable(ModelError):
    """A model that is not on this machine, at a time when the Hugging Face Hub cannot be reached."""


def without_folders(text: str) -> str:
    """A message with only the last name of each path: where things are on the server is not for its visitors."""
    return FOLDERS.sub("", text)
