"""The drawing engine of the demo's plates: pen, textures, foods, tableware."""
