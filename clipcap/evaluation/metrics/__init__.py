"""Caption metrics as the COCO server computes them, with confidence intervals."""
