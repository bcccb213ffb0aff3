# SPDX-License-Identifier: Apache-2.0
"""Other names for a model's voices, by the server's configuration (`--voice-alias`)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig

FLAG = "--voice-alias"


def add_voice_arguments(parser: ArgumentParser) -> None:
    """Give `vllm serve` the flag."""
    group = parser.add_argument_group("speech", "Servers of multi-stream models.")
    group.add_argument(
        FLAG,
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="A name that requests may give for one of the model's voices, such as alloy=slt; "
        "once for each name.",
    )


def voice_aliases(args: Namespace, model_config: ModelConfig) -> dict[str, str]:
    """Voices by their other names.

    Raises:
        ValueError: naming the flag and what is accepted.
    """
    from vllm.unison.model.spec import multistream_spec

    spec = multistream_spec(model_config)
    assert spec is not None
    aliases: dict[str, str] = {}
    for item in getattr(args, "voice_alias", None) or []:
        name, equals, voice = item.partition("=")
        if not (name and equals and voice):
            raise ValueError(f"{FLAG} must be NAME=VOICE, not {item!r}")
        if voice not in spec.voices:
            raise ValueError(
                f"{FLAG} {item} must name one of the model's voices, {sorted(spec.voices)}"
            )
        if name in spec.voices or name in aliases:
            raise ValueError(f"{FLAG} {item} gives a name that is taken: {name!r}")
        aliases[name] = voice
    return aliases
