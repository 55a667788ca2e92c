"""Text before a caption: captions retrieved for an image, or words of a user's list that fit it."""
