"""`clipcap fit`, whose steps are commands."""

from __future__ import annotations

from pathlib import Path

from clipcap.cli.main import run
from clipcap.fit.config import FitConfig
from clipcap.fit.fit import fit as fit_by


def fit(data: str, config: FitConfig) -> Path:
    """Run the steps of a fit in this process."""
    return fit_by(data, config, run)
