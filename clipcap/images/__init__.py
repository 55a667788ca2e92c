"""Image files: found in folders, opened upright, decoded in worker processes, drawn in grids."""
