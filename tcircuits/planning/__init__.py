"""Plan before you pay: compile the real programs ahead of time for machines that are not there.

`tcircuits plan` and `tc.plan`. What is counted and how: `counting` (work), `programs` (memory of the devices),
`host_memory` (rows and graph), `hardware` (figures of devices), `result` (what comes of it).
"""

from tcircuits.planning.result import Line, Plan
from tcircuits.planning.run import plan

__all__ = ["Line", "Plan", "plan"]
