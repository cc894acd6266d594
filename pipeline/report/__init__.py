"""The report of a run: figures, plots and images in one HTML page."""

from pipeline.report.page import write_report

__all__ = ["write_report"]
