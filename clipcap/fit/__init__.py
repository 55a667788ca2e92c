"""From a folder of photos and captions to an evaluated captioner, by the commands a user would type."""
