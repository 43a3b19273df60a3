"""Starts workers on jobs that never end, and waits for Ctrl-C."""

import sys
from contextlib import closing
from pathlib import Path

from worker_samples import Tells

from modelglue.search.executors import Job
from modelglue.search.executors.workers import processes

if __name__ == "__main__":
    with closing(processes(Tells(Path(sys.argv[1]), endless=(0.1, 0.2)), workers=2)) as pool:
        list(pool.run([Job({"a": a}) for a in (0.1, 0.2, 0.3)]))
