"""The report: one HTML file that opens on the finding and needs nothing beside it."""

from aird.reporting.report.page import Sources, write_report

__all__ = ["Sources", "write_report"]
