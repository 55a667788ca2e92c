"""CLIP's preprocessing by Pillow and torch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as transforms

from clipcap.models.encoders.clip_preprocess import CLIP_MEAN, CLIP_STD, ClipPreprocess, crop_extreme_aspect

SHAPES = ((300, 400), (401, 300), (31, 32), (32, 32), (224, 224), (1, 700), (700, 3), (225, 337))


@pytest.mark.parametrize("resolution", [32, 224])
def test_pixels_are_those_of_torchvision_to_the_last_bit(resolution):
    theirs = transforms.Compose(
        [
            crop_extreme_aspect,
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.PILToTensor(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    own, random = pickle.loads(pickle.dumps(ClipPreprocess(resolution))), np.random.default_rng(0)
    for shape in SHAPES:
        image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        assert torch.equal(own(image), theirs(image)), shape
        assert own(image).shape == (3, resolution, resolution)
