"""The command of the web page: `app`."""

from __future__ import annotations

import argparse

from clipcap.app.config import AppConfig
from clipcap.cli.heavy_imports import heavy_imports
from clipcap.options import add_flags, from_flags


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommand with its flags."""
    text = "A web page that captions photos, for this machine alone unless --host says otherwise."
    app = commands.add_parser("app", help="a web page that captions photos", description=text)
    add_flags(app, AppConfig)
    app.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> int:
    """`clipcap app`."""
    config = from_flags(AppConfig, args)
    with heavy_imports():
        from clipcap.app.server import serve

    serve(config)
    return 0
