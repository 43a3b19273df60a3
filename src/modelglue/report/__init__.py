"""Tables, figures, one self-contained page: what was kept, what was dropped, and why."""

from modelglue.report.data import RunReport
from modelglue.report.write import write_report

__all__ = ["RunReport", "write_report"]
