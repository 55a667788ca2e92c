"""One evaluation, or several side by side, as a single HTML file that needs no network."""

from clipcap.report.content import Interval, Pictured, Run
from clipcap.report.page import write_report

__all__ = ["Interval", "Pictured", "Run", "write_report"]
