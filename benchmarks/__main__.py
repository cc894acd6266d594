"""The benchmarks that are commands: `python -m benchmarks NAME ...`."""

from __future__ import annotations

import argparse
import sys

from benchmarks import architectures, clothing
from benchmarks.gpu import run as gpu
from pipeline.errors import EXIT_USER_ERROR, UserError


def main() -> int:
    """Run the benchmark that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="NAME")
    gpu.add_options(commands.add_parser("gpu", help=gpu.HELP, description=gpu.__doc__))
    architectures.add_options(
        commands.add_parser("architectures", help=architectures.HELP, description=architectures.__doc__)
    )
    clothing.add_options(commands.add_parser("clothing", help=clothing.HELP, description=clothing.__doc__))
    args = parser.parse_args()
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
