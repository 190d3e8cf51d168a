"""The report of a run: one self-contained page, made from the run folder alone, without a model."""

from circuitlab.report.pages import write_report

__all__ = ["write_report"]
