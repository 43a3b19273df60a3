"""Opens each reference that it is given and says as a line of JSON what came of it."""

import json
import os
import sys

from modelglue.checkpoint.source import open_checkpoint
from modelglue.errors import ModelGlueError

if __name__ == "__main__":
    for reference in sys.argv[1:]:
        try:
            checkpoint = open_checkpoint(reference)
            answer = {
                "name": checkpoint.name,
                "ref": checkpoint.ref,
                "fingerprint": checkpoint.fingerprint(),
                "files": sorted(os.listdir(checkpoint.path)),
            }
        except ModelGlueError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
