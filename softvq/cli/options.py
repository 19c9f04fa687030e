"""Options that several commands share; imports nothing heavy, so that --help answers at once."""

import argparse

BUNDLED_TOKENIZER = "softvq-emoji-64"
RELEASED = "SoftVQVAE/softvq-l-64"


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=BUNDLED_TOKENIZER,
        help=f"a model folder, a bundled model or a hub name (default: {BUNDLED_TOKENIZER}, which knows emoji)",
    )


def add_fit_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit",
        choices=("crop", "resize", "pad"),
        default="crop",
        help="how an image becomes the model's square: crop its centre as ADM does (default), resize by stretching, "
        "or pad with white",
    )
