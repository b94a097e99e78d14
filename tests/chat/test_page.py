"""The page as it is built, without a browser."""

from __future__ import annotations

import gradio as gr

from chat.engine import Engine
from chat.page import build_page, lay_out_settings


def test_defaults_come_from_generation_config(engine: Engine) -> None:
    page = build_page(engine)
    values = {block.label: block.value for block in page.blocks.values() if isinstance(block, gr.Slider)}
    assert values == {"Max new tokens": 512, "Temperature": 0.9, "Top-p": 0.95, "Top-k": 64}
    (greedy,) = (block for block in page.blocks.values() if getattr(block, "label", None) == "Greedy")
    assert greedy.value is False


def test_every_setting_has_a_line_of_help(engine: Engine) -> None:
    with gr.Blocks():
        settings = lay_out_settings(engine)
    assert len(settings) == 6
    assert all(setting.info for setting in settings)
