"""Starts the chat in the browser; the same file starts the Hugging Face Space.

    python app.py [--model FOLDER_OR_HUB_ID] [--host HOST] [--port PORT]

The rooms are in `chat/`.
"""

from chat.command import main

if __name__ == "__main__":
    main()
