"""`clipcap parse conceptual`: the only source whose images can be downloaded first."""

from __future__ import annotations

from clipcap.features.config import ParseConfig
from clipcap.features.parse import parse
from clipcap.runtime.messages import logger
from clipcap.sources.conceptual import find_sets
from clipcap.sources.download import fetch_missing


def parse_conceptual(config: ParseConfig, download: bool) -> None:
    """Write the feature files; with `download`, first download missing images."""
    if download:
        for tsv, folder in find_sets(config.source).values():
            logger.info(fetch_missing(tsv, folder))
    parse("conceptual", config)
