"""A chat with a Gemma 3 INT4 checkpoint in the browser.

    repo       which repository is served, and whether it can be: from file names and JSON alone
    pictures   an uploaded file -> an upright RGB picture, or a ChatError that says what is wrong with it
    messages   what the page shows -> what the model reads
    prompt     messages -> model inputs; text never becomes a control token
    memory     what stays of chats between two questions, within a bound of bytes
    reader     a model that reads of a prompt only what is new in it
    shares     one model, several questions: each gets as much of its time as the others
    engine     loads one model in the background and answers chats, token by token, until told to stop
    handlers   what the page and the API endpoint `/chat` do
    page       the page around an engine; page.css, page.js and status.html are its own
    server     serves it on a local address

The browser holds the chats and sends the whole chat with each question. Between two questions the server keeps the
uploaded pictures and, within a bound, what the model computed of the chats: both for a day at most, and no texts.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # ZeroGPU's package; it has to come before torch, so before every other file of this package
except ImportError:
    spaces = None

ON_ZERO_GPU = spaces is not None and os.environ.get("SPACES_ZERO_GPU") == "true"
