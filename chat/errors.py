"""The errors that a user meets; their text is shown to the user."""


class ChatError(Exception):
    """A question that cannot be answered."""


class ModelError(Exception):
    """A model that the chat cannot serve; the message names it, and says what to do next."""


class HubUnreachable(ModelError):
    """A model that is not on this machine, at a time when the Hugging Face Hub cannot be reached."""
