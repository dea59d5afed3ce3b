"""The command line: one file per verb, and nothing that a Python caller would miss."""

import os
import sys

from trunkline.cli.root import app


def main() -> None:
    """Run the command line with the arguments of this process."""
    try:
        app(prog_name="trunkline")
    except SystemExit as ending:
        listing = sys.modules.get("trunkline.extraction.listing")
        if listing is not None and listing.is_abandoned():
            # What it waits for may never come, and libraries do not expect to be ended inside.
            sys.stderr.flush()
            os._exit(ending.code if isinstance(ending.code, int) else 1)
        raise
