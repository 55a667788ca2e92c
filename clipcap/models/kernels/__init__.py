"""Faster ways to the same numbers; `switch` turns all of them off at once (`CLIPCAP_PLAIN=1`)."""
