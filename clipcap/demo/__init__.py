"""The embedded default: drawn plates of food with captions, small models, and the road from end to end."""
