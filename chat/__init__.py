"""A chat with a Gemma 3 INT4 checkpoint in the browser.

    repo         which repository is served, and whether it can be: from file names and JSON alone
    question     what a client sends -> a question, whole and within the limits, or a ChatError that says what is wrong
    pictures     an uploaded file -> an upright RGB picture of a bounded size
    uploads      the uploaded pictures on the disk, for a day
    prompt       messages -> model inputs; text never becomes a control token
    pixels       pictures as the model looks at them, decoded once
    memory       what stays of chats between two questions, within a bound of bytes
    reader       a model that reads of a prompt only what is new in it
    written      the tokens of the latest answers, so that one that was cut off can go on
    shares       one model, several questions: each gets as much of its time as the others
    engine       loads one model in the background and answers chats, token by token, until told to stop
    answers      what the page's endpoint and the API endpoint `/chat` do
    refusals     requests that are answered with a sentence and no more
    connections  closes connections that keep the server waiting
    gate         who may ask what; what browsers may do with what is answered
    bodies       what a request may send: how much, how fast, of which shape
    waiting      who waits in the queue: no more of one client than its share, and nobody who does not listen
    routes       what the server answers itself: the page, what it tells of the model, pictures
    server       Gradio's queue and endpoints behind all that, on an address
    command      the command line
    page/        the page: plain HTML, CSS and JavaScript modules, and the libraries that they use

The browser holds the chats and sends the whole chat with each question; of an API client the server holds it. Beside
that, the server keeps between two questions, in bounds and for a day at most, the uploaded pictures, what the model
computed of chats, and the tokens of the latest answers.
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # ZeroGPU's package; it has to come before torch, so before every other file of this package
except ImportError:
    spaces = None

ON_ZERO_GPU = spaces is not None and os.environ.get("SPACES_ZERO_GPU") == "true"
DAY = 24 * 3600  # seconds for which the server keeps anything of a chat at most
