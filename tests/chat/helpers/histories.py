"""The page's messages, as gradio hands them over."""

from __future__ import annotations

from pathlib import Path


def text(value: str) -> dict:
    """A part of a message."""
    return {"type": "text", "text": value}


def said(role: str, *items: str | Path) -> dict:
    """A message of texts and uploaded files."""
    content = [text(item) if isinstance(item, str) else {"type": "file", "file": {"path": str(item)}} for item in items]
    return {"role": role, "content": content}


def warned(message: str) -> dict:
    """A notice by the app."""
    return {**said("assistant", message), "metadata": {"id": "notice"}}
