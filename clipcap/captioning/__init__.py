"""From embedding to caption: beam search, sampling, the captioner, and the predict command."""
