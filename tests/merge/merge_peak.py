"""Merges as the command does, and prints the peak of the memory that is the process's own."""

import json
import re
import sys
import threading
from pathlib import Path

from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import make_plan


def private() -> int:
    """Bytes; pages of mapped files are counted against nobody."""
    status = Path("/proc/self/status").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"(\w+):\s+(\d+) kB", status)}
    return (sizes["RssAnon"] + sizes["RssShmem"]) << 10


if __name__ == "__main__":
    config, out, warm_up = sys.argv[1:]
    # Compiled loops and the like are there before anything is measured.
    execute(make_plan(parse_config(json.loads(warm_up))), Path(out + "-warm-up"), threads=2)
    peak = before = private()
    done = threading.Event()

    def watch() -> None:
        global peak
        while not done.wait(0.002):
            peak = max(peak, private())

    watching = threading.Thread(target=watch)
    watching.start()
    execute(make_plan(parse_config(json.loads(config))), Path(out), threads=2)
    done.set()
    watching.join()
    sys.stdout.write(json.dumps(peak - before))
