"""Training and validation images, split by image, never by caption."""

from __future__ import annotations

from dataclasses import replace

from clipcap.errors import ClipcapError
from clipcap.sources.record import Record


def split_by_image(records: list[Record], train_size: float, seed: int) -> list[Record]:
    """The records in their order, a share `train_size` of them marked "train", the rest "val".

    The same records and seed give the same split (scikit-learn's `train_test_split`).
    """
    from sklearn.model_selection import train_test_split  # takes a second to import, and few commands split

    try:
        train, _ = train_test_split(range(len(records)), train_size=train_size, random_state=seed)
    except ValueError as error:
        raise ClipcapError(
            f"--train_size {train_size} of {len(records)} images leaves train or val empty: choose another share"
        ) from error
    chosen = set(train)
    return [replace(record, split="train" if i in chosen else "val") for i, record in enumerate(records)]
