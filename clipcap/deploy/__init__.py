"""A captioner for other programs: ONNX graphs with a small runner, and one HTML file for any browser."""
