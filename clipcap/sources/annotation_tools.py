"""What annotation tools export: an image and what people have typed for it, each at a depth of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clipcap.sources.names import CAPTION_NAMES, plain

_DEEPEST = 12  # objects within objects


def flat_rows(values: list) -> list | None:
    """A row of named columns for each entry of an export of Label Studio or Labelbox; None for all else."""
    first = values[0] if values else None
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("data"), dict) and isinstance(first.get("annotations", first.get("completions")), list):
        return _of_label_studio(values)
    if isinstance(first.get("data_row"), dict) and isinstance(first.get("projects"), dict):
        return [_of_labelbox(value) if isinstance(value, dict) else value for value in values]
    return None


def via_images(value: dict) -> dict | None:
    """The images of a project of the VGG Image Annotator; None for all else."""
    images = value.get("_via_img_metadata")
    return images if isinstance(images, dict) and images else None


def _of_label_studio(values: list) -> list:
    """The task's data, and as its caption the texts typed; where nobody typed any, the data's own."""
    texts = [list(_typed_texts(value)) if isinstance(value, dict) else [] for value in values]
    rows = []
    for value, typed in zip(values, texts):
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, dict):
            rows.append(value)
        elif any(texts):
            own = {name: cell for name, cell in data.items() if plain(str(name)) not in CAPTION_NAMES}
            rows.append({**own, "caption": typed})
        else:
            rows.append(data)
    return rows


def _typed_texts(task: dict) -> Iterator[str]:
    for annotation in task.get("annotations", task.get("completions")) or []:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            found = result.get("value") if isinstance(result, dict) and result.get("type") == "textarea" else None
            text = found.get("text") if isinstance(found, dict) else None
            yield from [text] if isinstance(text, str) else text if isinstance(text, list) else ()


def _of_labelbox(value: dict) -> dict:
    row = value.get("data_row")
    row = row if isinstance(row, dict) else {}
    image = row.get("external_id") or row.get("global_key") or row.get("row_data")
    return {"image": image, "caption": list(_answers(value.get("projects"), 0))}


def _answers(value: Any, depth: int) -> Iterator[str]:
    """Every free text that was given as an answer."""
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        answer = value.get("text_answer")
        if isinstance(answer, dict) and isinstance(answer.get("content"), str):
            yield answer["content"]
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _answers(part, depth + 1)
