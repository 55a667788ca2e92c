"""A CLIP of your own: a dual encoder trained on images and captions."""
