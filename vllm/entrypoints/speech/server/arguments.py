# SPDX-License-Identifier: Apache-2.0
"""What `vllm serve` may be told beside upstream's options."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction

from vllm.entrypoints.speech.server.voices import add_voice_arguments


def add_server_arguments(parser: ArgumentParser) -> None:
    """Give `vllm serve` the flags of servers of multi-stream models."""
    add_voice_arguments(parser)
    group = parser.add_argument_group("playground", "The page of servers of multi-stream models.")
    group.add_argument(
        "--playground",
        action=BooleanOptionalAction,
        default=True,
        help="Serve a page to try the model with at /.",
    )
