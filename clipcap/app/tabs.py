"""The tabs of the page: inputs, results, and the API endpoints behind them."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from clipcap.app import markup
from clipcap.app.checkpoints import Checkpoints
from clipcap.app.config import AppConfig
from clipcap.app.downloads import csv_file, text_files, training_set
from clipcap.app.service import PictureSearch, Row
from clipcap.captioning.config import DecodeConfig
from clipcap.errors import ClipcapError
from clipcap.runtime.html import tag

BEAM, SAMPLING = "beam search", "sampling"
BY_LIKELIHOOD, BY_CLIP = "log-probability", "CLIP score"
MOST_CAPTIONS = 10  # per photo
LONGEST_START = 200  # characters that a caption begins with
FAILED = "Nothing to show: a message says why."
# The example photo in the API documentation, in place of Gradio's link to another site.
EXAMPLE = {"path": "photo.jpg", "url": "photo.jpg", "meta": {"_type": "gradio.FileData"}}
UNSEEN = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # events of the page itself


def caption_tab(checkpoints: Checkpoints, examples: Sequence[Path]) -> None:
    """One photo, several captions."""
    import gradio as gr

    def caption(
        photo: str | None,
        decoding: str,
        beam_size: int,
        temperature: float,
        top_p: float,
        num_captions: int,
        max_tokens: int,
        best_by: str,
        begins_with: str | None = None,
        checkpoint: str | None = None,
    ) -> list[Row]:
        """Caption a photo: its captions, best first, with mean log-probability per token and CLIP score."""
        if photo is None:
            return []
        chosen = _decoding(decoding, beam_size, temperature, top_p, num_captions, max_tokens, best_by, begins_with)
        return checkpoints.service(checkpoint).caption(Path(photo), chosen)

    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            photo = photo_input("caption_photo")
            settings = _settings(checkpoints)
            again = gr.Button("Write captions", variant="primary")
        with gr.Column(scale=6, min_width=300):
            rows, shown = result("Captions appear here.")
    gr.Examples([[str(path)] for path in examples], photo, label="Or one of these", api_visibility="private")
    event = gr.on([photo.change, again.click], report_errors(caption), [photo, *settings], rows, api_name="caption")
    show_result(event, rows, shown, markup.captions, "Choose a photo: its captions appear here.")


def many_tab(checkpoints: Checkpoints, config: AppConfig) -> None:
    """Many photos, a caption each, to be edited and saved."""
    import gradio as gr

    def caption_many(
        photos: list[str] | None,
        decoding: str,
        beam_size: int,
        temperature: float,
        top_p: float,
        num_captions: int,
        max_tokens: int,
        best_by: str,
        begins_with: str | None = None,
        checkpoint: str | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[Row], str | None]:
        """Caption many photos: the best caption of each (or an error if it cannot be read), and a CSV of them."""
        if not photos:
            raise ClipcapError("choose some photos first")
        if len(photos) > config.max_photos:
            raise ClipcapError(
                f"{len(photos):,} photos are chosen; at most {config.max_photos:,} are allowed at once"
            )
        chosen = _decoding(decoding, beam_size, temperature, top_p, num_captions, max_tokens, best_by, begins_with)
        progress((0, len(photos)), unit="photos")
        rows, table = checkpoints.service(checkpoint).caption_many(
            [Path(photo) for photo in photos], chosen, lambda done: progress((done, len(photos)), unit="photos")
        )
        return rows, csv_file(table) if table else None

    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            photos = gr.File(
                label="Photos", file_count="multiple", file_types=["image"], height=220, elem_id="many_photos"
            )
            photos.example_payload = lambda: [EXAMPLE]
            count = gr.HTML("", elem_classes="count")
            settings = _settings(checkpoints)
            go = gr.Button("Caption all", variant="primary")
        with gr.Column(scale=6, min_width=300):
            texts = gr.File(label="Captions as .txt files", interactive=False, visible=False, elem_id="many_texts")
            table = gr.File(label="Captions as CSV", interactive=False, visible=False, elem_id="many_csv")
            rows, shown = result("Captions appear here.")
            keep, saved = _training_set(photos, rows, texts)
    event = go.click(report_errors(caption_many), [photos, *settings], [rows, table], api_name="caption_many")
    photos.change(lambda some: markup.chosen(len(some or [])), photos, count, **UNSEEN)
    event.success(lambda: [gr.update(visible=True)] * 2, None, [table, keep], **UNSEEN)
    event.success(lambda found: gr.update(value=text_files(found or []), visible=True), rows, texts, **UNSEEN)
    event.success(lambda: gr.update(value=None, visible=False), None, saved, **UNSEEN)
    show_result(event, rows, shown, markup.photos)


def _training_set(photos: Any, rows: Any, texts: Any) -> tuple[Any, Any]:
    """A button that saves a batch's captions as they were edited, and the zip that it writes."""
    import gradio as gr

    def save(photos: list[str] | None, captions: list[Row]) -> str:
        """A zip of photos, each with a text of its captions: rows of `image`, a photo's name, and `caption`."""
        return training_set([Path(photo) for photo in photos or []], captions or [])

    keep = gr.Button("Save the edited captions as a training set", visible=False, elem_id="many_save")
    saved = gr.File(label="Photos with their captions", interactive=False, visible=False, elem_id="many_set")
    event = keep.click(
        report_errors(save), [photos, rows], saved, api_name="training_set",
        js="(photos, rows) => [photos, editedCaptions(rows)]",
    )  # fmt: skip
    event.success(lambda: gr.update(visible=True), None, saved, **UNSEEN)
    keep.click(text_files, rows, texts, js="rows => [editedCaptions(rows)]", **UNSEEN)
    return keep, saved


def explain_tab(checkpoints: Checkpoints) -> None:
    """The words nearest to a photo's prefix."""
    import gradio as gr

    def explain(photo: str | None, words: int) -> list[Row]:
        """The words of the language model that are nearest to each position of a photo's prefix."""
        return checkpoints.service(None).explain(Path(photo), int(words)) if photo else []

    gr.Markdown(
        "The mapping network turns a photo into a few vectors that the language model reads as if they were words, "
        "the *prefix*. The words nearest to each vector are shown here; nearer words have a stronger colour. A "
        "prefix need not resemble words: with a fine-tuned language model it often cannot be read."
    )
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            photo = photo_input("explain_photo")
            words = gr.Slider(1, 10, 5, step=1, label="Words for each position")
        with gr.Column(scale=6, min_width=300):
            rows, shown = result("The words of the prefix appear here.")
    event = gr.on([photo.change, words.release], report_errors(explain), [photo, words], rows, api_name="explain")
    show_result(event, rows, shown, markup.words, "Choose a photo: the words of its prefix appear here.")


def search_tab(search: PictureSearch, name: str, text: str, label: str) -> None:
    """Search for pictures by words or by a picture; `name` is the name of the API endpoint."""
    import gradio as gr

    def find(words: str, pictures: int) -> list[Row]:
        return search.find(words, int(pictures))

    def find_alike(photo: str | None, pictures: int) -> list[Row]:
        """The pictures of the index that are most like a photo."""
        return [] if photo is None else search.find_alike(Path(photo), int(pictures))

    find.__doc__ = text
    gr.Markdown(text)
    with gr.Row(equal_height=True):
        words = gr.Textbox(label=label, scale=6, min_width=260, max_lines=1, elem_id=f"{name}_words")
        pictures = gr.Slider(1, 30, 9, step=1, label="Pictures", scale=3, min_width=160)
        go = gr.Button("Search", variant="primary", scale=1, min_width=120)
    photo = None
    if search.encoder is not None:
        with gr.Accordion("Or search by a picture", open=False, elem_classes="settings"):
            photo = photo_input(f"{name}_photo")
    rows, shown = result("Pictures appear here.")
    event = gr.on([go.click, words.submit], report_errors(find), [words, pictures], rows, api_name=name)
    show_result(event, rows, shown, markup.pictures)
    if photo is not None:
        event = photo.change(report_errors(find_alike), [photo, pictures], rows, api_name=f"{name}_by_picture")
        show_result(event, rows, shown, markup.pictures)


def photo_input(name: str) -> Any:
    """An input for a photo. `clipcap.images.read` opens it and reports errors in one line."""
    import gradio as gr

    photo = gr.Image(
        label="Photo", type="filepath", sources=["upload", "webcam", "clipboard"], height=340, elem_id=name
    )
    photo.preprocess = lambda payload: payload and payload.path
    photo.example_payload = lambda: EXAMPLE
    return photo


def _settings(checkpoints: Checkpoints) -> list[Any]:
    """The decoding settings, in the order of `_decoding`'s arguments."""
    import gradio as gr

    default = DecodeConfig().resolved()
    most_tokens = min(100, checkpoints.service(None).longest)
    with gr.Accordion("Settings", open=False, elem_classes="settings"):
        decoding = gr.Radio([BEAM, SAMPLING], value=BEAM, label="Decoding", elem_classes="decoding")
        beam_size = gr.Slider(1, 10, default.beam_size, step=1, label="Beams")
        with gr.Group(visible=False) as sampling:
            temperature = gr.Slider(
                0, 2, default.temp, step=0.05, label="Temperature", elem_classes="temperature",
                info="below 1: safer; above 1: more varied; 0: always the likeliest token",
            )  # fmt: skip
            top_p = gr.Slider(
                0.05,
                1,
                default.top_p,
                step=0.05,
                label="Top-p",
                info="the likeliest tokens, up to this total probability",
            )
        num_captions = gr.Slider(1, MOST_CAPTIONS, 3, step=1, label="Captions")
        max_tokens = gr.Slider(
            1, most_tokens, min(default.longest, most_tokens), step=1, label="Longest caption, in tokens"
        )
        best_by = gr.Radio([BY_LIKELIHOOD, BY_CLIP], value=BY_LIKELIHOOD, label="Sort captions by")
        begins_with = gr.Textbox(
            label="Caption begins with", max_lines=1, max_length=LONGEST_START, elem_classes="begins",
            info="words that every caption starts with; the model writes the rest",
        )  # fmt: skip
        names = checkpoints.names
        checkpoint = gr.Dropdown(
            names, value=names[0], label="Checkpoint", visible=len(names) > 1, elem_classes="checkpoint"
        )
    decoding.change(
        lambda chosen: (gr.update(visible=chosen == BEAM), gr.update(visible=chosen == SAMPLING)),
        decoding, [beam_size, sampling], **UNSEEN,
    )  # fmt: skip
    return [decoding, beam_size, temperature, top_p, num_captions, max_tokens, best_by, begins_with, checkpoint]


def _decoding(
    decoding: str,
    beam_size: int,
    temperature: float,
    top_p: float,
    num_captions: int,
    max_tokens: int,
    best_by: str,
    begins_with: str | None,
) -> DecodeConfig:
    start = (begins_with or "").strip()
    if len(start) > LONGEST_START:
        raise ClipcapError(f"the caption's start has {len(start):,} characters; at most {LONGEST_START} are allowed")
    beam = decoding == BEAM
    greedy = not beam and temperature == 0  # greedy search finds one caption, whatever number is requested
    return DecodeConfig(
        beam=beam,
        beam_size=max(int(beam_size), int(num_captions)),
        temp=1.0 if beam else float(temperature),
        top_p=float(top_p),
        num_captions=1 if greedy else int(num_captions),
        max_new_tokens=int(max_tokens),
        prompt=start,
        rerank="clip" if best_by == BY_CLIP and not greedy else "none",
    )


def result(text: str) -> tuple[Any, Any]:
    """The rows of a result: hidden JSON for the API, and HTML for the page."""
    import gradio as gr

    return gr.JSON(visible=False), gr.HTML(_line(text), elem_classes="result")


def show_result(
    event: Any, rows: Any, shown: Any, render: Callable[[Sequence[Row]], str], empty: str = "Nothing was found."
) -> None:
    """Show the rows after an event succeeds, or a line where there are none or an error came."""
    event.success(lambda found: render(found) if found else _line(empty), rows, shown, **UNSEEN)
    event.failure(lambda: _line(FAILED), None, shown, **UNSEEN)


def _line(text: str) -> str:
    return tag("p", text, class_="empty")


def report_errors(compute: Callable) -> Callable:
    """Wrap a computation so that the page shows its `ClipcapError`s."""
    import gradio as gr

    @wraps(compute)
    def reporting(*values: Any) -> Any:
        try:
            return compute(*values)
        except ClipcapError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return reporting
