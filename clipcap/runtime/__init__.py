"""What every stage relies on: atomic files, disk arrays, the hub, processes, text for terminals, safe loading."""
