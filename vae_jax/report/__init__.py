"""Reports of runs for people to read: tables on the terminal, a page for the browser."""

from vae_jax.report.comparison import compared
from vae_jax.report.page import Report, report_on
from vae_jax.report.tables import (
    quality_table,
    rates_of,
    record,
    recorded,
    rows_of,
    show,
    show_datasets,
    show_numbers,
)

__all__ = [
    "Report",
    "compared",
    "quality_table",
    "rates_of",
    "record",
    "recorded",
    "report_on",
    "rows_of",
    "show",
    "show_datasets",
    "show_numbers",
]
