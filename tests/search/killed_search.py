"""A search by two workers, to be killed at any moment; prints what it comes to."""

import json
import sys
from contextlib import closing
from pathlib import Path

from worker_samples import BLOCKS, Counts, racing_search

from modelglue.journal import Journal
from modelglue.search.executors.workers import processes
from modelglue.search.trials import JournalledObjective

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with closing(processes(Counts(folder), workers=2)) as made, Journal(folder / "journal") as kept:
        found = racing_search(JournalledObjective(made, kept, scope="s", items=BLOCKS))
    sys.stdout.write(json.dumps(found))
