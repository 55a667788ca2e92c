"""The commands of retrieval: `index`, `search`."""

from __future__ import annotations

import argparse

from clipcap.cli.heavy_imports import heavy_imports
from clipcap.options import add_flags, from_flags
from clipcap.retrieval.config import IndexConfig, SearchConfig


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands with their flags."""
    text = "Features → an index of them, which answers faster and can be added to."
    index = commands.add_parser("index", help="features → an index to search", description=text)
    index.add_argument("features", nargs="+", metavar="FEATURES", help="feature files and folders of one encoder")
    add_flags(index, IndexConfig)
    index.set_defaults(run=run_index)

    text = "Words, photos, images of the index or embeddings → the nearest pictures."
    search = commands.add_parser("search", help="words or photos → the pictures nearest to them", description=text)
    search.add_argument("query", nargs="*", metavar="WORDS", help="what to look for")
    search.add_argument("--img", nargs="+", action="extend", default=[], help="photos to look for, globs or folders")
    add_flags(search, SearchConfig)
    search.set_defaults(run=run_search)


def run_index(args: argparse.Namespace) -> int:
    """`clipcap index`."""
    config = from_flags(IndexConfig, args)
    with heavy_imports():
        from clipcap.retrieval.build import build_index

    build_index(args.features, config)
    return 0


def run_search(args: argparse.Namespace) -> int:
    """`clipcap search`."""
    config = from_flags(SearchConfig, args)
    with heavy_imports():
        from clipcap.retrieval.search import find

    find(" ".join(args.query), args.img, config)
    return 0
