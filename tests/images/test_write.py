"""A picture is written whole, or writing it fails."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from PIL import Image
from support.disks import resize

from clipcap.images.write import write_picture

KINDS = {"PNG": {}, "JPEG": {"quality": 90, "subsampling": 0}, "BMP": {}, "TIFF": {}, "GIF": {}, "WEBP": {}}


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_pillow(picture, tmp_path, kind):
    write_picture(picture, tmp_path / "ours", kind, **KINDS[kind])
    picture.save(tmp_path / "pillow", kind, **KINDS[kind])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "pillow").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_does_not_fit_on_the_disk_is_an_error(picture, tmp_path, small_disk, kind):
    write_picture(picture, tmp_path / "whole", kind)
    whole = (tmp_path / "whole").stat().st_size
    for size in (4096, whole // 4096 * 4096):
        with pytest.raises(OSError) as failed:
            write_picture(picture, resize(small_disk, size) / "cut", kind)
        assert failed.value.errno == errno.ENOSPC
