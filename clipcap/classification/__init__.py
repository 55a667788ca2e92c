"""Photos into classes: by labels alone, by pairs of prompts with thresholds, or by a probe fitted to features."""
