"""The command line: one file per verb, and nothing that a Python caller would miss."""

from trunkline.cli.root import app


def main() -> None:
    """Run the command line with the arguments of this process."""
    app(prog_name="trunkline")
