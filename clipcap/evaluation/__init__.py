"""Captions scored against human captions, compared between runs, and shown in a report."""
