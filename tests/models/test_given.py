"""What captions are conditioned on: parts of it, and what is finite."""

import torch

from clipcap.models.given import Given


def test_vectors_alone_are_given_as_they_are():
    vectors = torch.randn(3, 4)
    assert Given.of(vectors).vectors is vectors
    given = Given(vectors)
    assert Given.of(given) is given and len(given) == 3


def test_some_images_keep_all_that_belongs_to_them():
    given = Given(torch.randn(4, 2), torch.randn(4, 3, 5), torch.rand(4, 3) > 0.5)
    for rows in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, False, True])):
        some = given[rows]
        for name in ("vectors", "tokens", "token_mask"):
            assert torch.equal(getattr(some, name), getattr(given, name)[rows])
        assert some.prompt_ids is None


def test_an_image_is_finite_where_its_vector_and_all_its_tokens_are():
    vectors, tokens = torch.zeros(3, 2), torch.zeros(3, 2, 2)
    vectors[0, 1], tokens[2, 1, 0] = torch.nan, torch.inf
    assert Given(vectors).isfinite().tolist() == [False, True, True]
    assert Given(vectors, tokens).isfinite().tolist() == [False, True, False]
