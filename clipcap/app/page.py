"""The page: head, tabs and theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipcap.app import tabs
from clipcap.app.checkpoints import Checkpoints
from clipcap.app.config import AppConfig
from clipcap.app.drawing import Drawing
from clipcap.app.drawing_tabs import classify_tab, draw_tab
from clipcap.app.service import PictureSearch, Row
from clipcap.runtime.html import phrase, tag

STYLE, SCRIPT = (Path(__file__).parent / name for name in ("style.css", "script.js"))
FONT = "system-ui"
MOST_WAITING = 64  # queued requests of one kind; further ones are refused
SEARCH = (
    "Describe pictures in words, or show one. The search shows the best matches of the index, by the cosine of their "
    "embeddings."
)
IMAGINE = "Write a caption. CLIP-GPT imagines the embedding of its picture; these are the pictures nearest to it."


def build_page(
    checkpoints: Checkpoints,
    config: AppConfig,
    model: str,
    examples: Sequence[Path],
    delete_cache: tuple[int, int],
    search: PictureSearch | None = None,
    imagine: PictureSearch | None = None,
    drawing: Drawing | None = None,
    label: Callable[[Path, str, str], list[Row]] | None = None,
) -> Any:
    """The page as Gradio blocks.

    Args:
        checkpoints: the captioners to choose from.
        model: a line about the captioner.
        examples: pictures to choose from.
        delete_cache: how often old files are removed, and from which age on, both in seconds.
        search: of the search tab, if there is one.
        imagine: of the CLIP-GPT tab, if there is one.
        drawing: of the Draw tab, if there is one.
        label: of the Classify tab, if there is one.
    """
    import gradio as gr

    with gr.Blocks(title="clipcap", analytics_enabled=False, delete_cache=delete_cache) as page:
        gr.HTML(tag("header", tag("h1", "clipcap"), phrase("p", model)))
        with gr.Tab("Caption"):
            tabs.caption_tab(checkpoints, examples)
        with gr.Tab("Batch"):
            tabs.many_tab(checkpoints, config)
        with gr.Tab("Prefix"):
            tabs.explain_tab(checkpoints)
        if search:
            with gr.Tab("Search"):
                tabs.search_tab(search, "search", SEARCH, "What the pictures show")
        if imagine:
            with gr.Tab("Imagine"):
                tabs.search_tab(imagine, "imagine", IMAGINE, "Caption")
        if label:
            with gr.Tab("Classify"):
                classify_tab(label, examples)
        if drawing:
            with gr.Tab("Draw"):
                draw_tab(drawing)
    return page.queue(max_size=MOST_WAITING)


def theme() -> Any:
    """A Gradio theme with the fonts of the reader's system."""
    from gradio.themes import Base, Font

    font = [Font(FONT), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("monospace")]
    base = Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="stone", radius_size="lg", font=font, font_mono=mono
    )
    return base.set(  # the default colours have too little contrast
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_600",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
    )
