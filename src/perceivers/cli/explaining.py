"""The verb ``explain``: draw attention maps."""

import sys

from perceivers.cli.parser import VerbParser
from perceivers.cli.using import RUN_HELP
from perceivers.workflows.explaining import draw_all


def explain(argv: list[str]) -> int:
    """Draw attention maps of a model on some files."""
    parser = VerbParser(
        "explain", "Draw which input elements the latents and the output attend to."
    )
    parser.add_argument("run", help=RUN_HELP)
    parser.add_argument(
        "files",
        nargs="+",
        help="images, audio, videos or texts, or folders searched for them; for other inputs a "
        "data address",
    )
    parser.add_argument("--out", default="explained", help="folder for the figures")
    parser.add_argument("--head", default="mean", help="attention heads: mean, all, or an index")
    parser.add_argument(
        "--latents", type=int, default=4, help="latents drawn individually per cross-attention"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier figures")
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
        f"{len(drawn.written) - 1} figures in {args.out}; see {drawn.written[-1]}\n"
        f"Attention shows where information was read, not what determined the output.\n"
    )
    return 0
