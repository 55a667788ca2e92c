"""The tabs Draw and Classify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from clipcap.app import markup
from clipcap.app.drawing import Drawing
from clipcap.app.service import Row
from clipcap.app.tabs import photo_input, report_errors, result, show_result

LABELS, PROMPT = "apple, banana, burger, cherry, cookie, egg, pizza", "a {} on a plate"


def draw_tab(drawing: Drawing) -> None:
    """A sentence, drawn word by word."""
    import gradio as gr

    def draw(text: str) -> list[Row]:
        """Draw the last line of a text: a picture for each word, as an animation."""
        return drawing.draw(text)

    gr.Markdown(
        "One picture for each word of a sentence: the word that is drawn is in CAPITALS. Only the last line is drawn."
    )
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            text = gr.Textbox(label="Text", lines=4, value="two cherries on a plate", elem_id="draw_text")
            go = gr.Button("Draw", variant="primary")
        with gr.Column(scale=6, min_width=300):
            rows, shown = result("The pictures appear here.")
    event = go.click(report_errors(draw), [text], rows, api_name="draw")
    show_result(event, rows, shown, markup.drawn, "Write a text: its pictures appear here.")


def classify_tab(label: Callable[[Path, str, str], list[Row]], examples: Sequence[Path]) -> None:
    """A photo, and the user's own labels."""
    import gradio as gr

    def classify(photo: str | None, labels: str, prompt: str) -> list[Row]:
        """Give a photo its likeliest labels, each with its probability among the given labels."""
        return label(Path(photo), labels, prompt) if photo else []

    gr.Markdown("Find the label that fits the photo best. Each label replaces {} in the prompt.")
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            photo = photo_input("classify_photo")
            labels = gr.Textbox(label="Labels, with commas between them", value=LABELS, lines=2, elem_id="labels")
            prompt = gr.Textbox(label="Prompt", value=PROMPT, max_lines=1, elem_id="prompt")
            go = gr.Button("Classify", variant="primary")
        with gr.Column(scale=6, min_width=300):
            rows, shown = result("Labels appear here.")
    gr.Examples([[str(path)] for path in examples], photo, label="Or one of these", api_visibility="private")
    event = gr.on(
        [photo.change, go.click], report_errors(classify), [photo, labels, prompt], rows, api_name="classify"
    )
    show_result(event, rows, shown, markup.labels, "Choose a photo: its labels appear here.")
