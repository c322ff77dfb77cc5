"""Reports of trained models: self-contained HTML pages of items, plots and metrics."""

from gmvq.reports.prior_page import write_prior_report
from gmvq.reports.run_page import write_report

__all__ = ["write_prior_report", "write_report"]
