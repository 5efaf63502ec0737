"""What was asked of fxprune and what came out, as one page and as the same figures in JSON."""

from fxprune.reports.building import plan_report
from fxprune.reports.data import GroupRow, Histogram, LayerRow, NetworkColumn, Report, ShareTable
from fxprune.reports.page import report_html, save_report

__all__ = [
    "GroupRow",
    "Histogram",
    "LayerRow",
    "NetworkColumn",
    "Report",
    "ShareTable",
    "plan_report",
    "report_html",
    "save_report",
]
