"""The words of a generator's classes."""
WORDS_FILE = "words.json"
