"""A writer that takes its time, to be killed; imports no torch, so that it starts fast."""

import struct
import sys
import time
from pathlib import Path

from modelglue.checkpoint.writer import CheckpointWriter

if __name__ == "__main__":
    layout = {f"t{i:02d}": ("F32", (64, 64)) for i in range(40)}
    with CheckpointWriter(Path(sys.argv[1]), layout, max_shard_bytes=200_000) as writer:
        sys.stdout.write("writing\n")
        sys.stdout.flush()
        for i, name in enumerate(layout):
            for row in range(0, 64, 16):
                data = struct.pack("<f", i) * (64 * 16)
                writer.write_bytes(name, data, start=row * 256)
            time.sleep(0.0005)
        writer.commit(config={"model_type": "llama"})
