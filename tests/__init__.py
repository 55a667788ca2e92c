"""The tests, a folder for each package of clipcap; `support` holds what they share, `faults` a harness of its own."""
