"""Computes statistics in children that kill themselves, each at a moment named on the way."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from modelglue.calibrate import parts
from modelglue.calibrate.compute import compute_statistics
from modelglue.evaluate.huggingface import HuggingFaceModel


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def compute(moment: str, arguments: dict[str, Any]) -> None:
    what, _, number = moment.partition(":")
    progress = None
    if what == "step":

        def progress(done: int, _total: int) -> None:
            if done == int(number):
                die()

    elif what == "record":  # the part stands, its line in the journal does not
        append = parts.Journal.append

        def kills_itself(journal: parts.Journal, record: dict[str, Any]) -> None:
            if record.get("part") == f"{int(number):05d}":
                die()
            append(journal, record)

        parts.Journal.append = kills_itself
    elif what == "assemble":  # all is written, nothing committed
        assemble = parts.Parts.assemble

        def dies_in_the_end(*given: Any) -> None:
            parts.CheckpointWriter.commit = die
            assemble(*given)

        parts.Parts.assemble = dies_in_the_end
    elif what == "remove":
        parts.Parts.remove = die
    compute_statistics(**arguments, progress=progress)


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    HuggingFaceModel.load(jobs[0][1]["model"])  # imports once what every child needs
    for moment, arguments in jobs:
        child = os.fork()
        if child == 0:
            compute(moment, arguments)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{moment}: ended by itself ({status})")
