"""The same as the command `modelglue`, for `python -m modelglue.cli`."""

from modelglue.cli import main

main()
