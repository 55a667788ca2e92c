"""One evaluation, or several side by side, as a single HTML file that needs no network."""
