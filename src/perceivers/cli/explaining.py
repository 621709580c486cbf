"""The verb that draws attention: explain."""

import sys

from perceivers.cli.parser import VerbParser
from perceivers.cli.using import RUN_HELP
from perceivers.workflows.explaining import draw_all


def explain(argv: list[str]) -> int:
    """Pictures of what a model attends to."""
    parser = VerbParser(
        "explain", "Draw what a model reads of its input, and where its answer looks."
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "files",
        nargs="+",
        help="pictures, sounds, videos or texts, or folders searched for them; for other inputs a "
        "data address",
    )
    parser.add_argument("--out", default="explained", help="folder for the pictures")
    parser.add_argument("--head", default="mean", help="heads: mean, all, or a number from 0")
    parser.add_argument("--latents", type=int, default=4, help="latents singled out per read")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier pictures")
    args = parser.parse_args(argv)
    drawn = draw_all(
        args.run,
        args.files,
        args.out,
        head=args.head,
        latents=args.latents,
        overwrite=args.overwrite,
    )
    for text in drawn.bad:
        sys.stderr.write(f"skipped: {text}\n")
    sys.stdout.write(
        f"{len(drawn.written) - 1} pictures in {args.out}; see {drawn.written[-1]}\n"
        f"Attention shows where information was read, not what decided the answer.\n"
    )
    return 0
