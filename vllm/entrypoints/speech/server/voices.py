# SPDX-License-Identifier: Apache-2.0
"""A server's voices beside its model's: recorded ones (`--voices`) and other names for them all
(`--voice-alias`)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.entrypoints.speech.parameters import RecordedVoice

FLAG = "--voice-alias"
FOLDER_FLAG = "--voices"


def add_voice_arguments(parser: ArgumentParser) -> None:
    """Give `vllm serve` the flags."""
    group = parser.add_argument_group("speech", "Servers of multi-stream models.")
    group.add_argument(
        FLAG,
        action="append",
        default=[],
        metavar="NAME=VOICE",
        help="A name that requests may give for one of the voices, such as alloy=heart; once for "
        "each name.",
    )
    group.add_argument(
        FOLDER_FLAG,
        type=Path,
        metavar="FOLDER",
        help="A folder of recorded voices for requests to name: NAME.wav, or another audio file, "
        "what is said in it in NAME.txt and, optionally, a display name and defaults in NAME.json.",
    )


def recorded_voices(args: Namespace, model_config: ModelConfig) -> dict[str, RecordedVoice]:
    """The voices of the folder that the server was given, by name.

    Raises:
        ValueError: naming the flag, the file and what is accepted.
    """
    folder = getattr(args, "voices", None)
    if folder is None:
        return {}
    # Imported here, as below: every command line of upstream's imports this module.
    from vllm.entrypoints.speech.voice_folder import read_voices
    from vllm.unison.model.spec import multistream_spec

    spec = multistream_spec(model_config)
    assert spec is not None
    return read_voices(folder, spec, model_config.max_model_len)


def voice_aliases(
    args: Namespace, model_config: ModelConfig, recorded: Collection[str] = ()
) -> dict[str, str]:
    """Voices by their other names.

    Args:
        args: of the command line.
        model_config: of the model, whose voices may have other names.
        recorded: names of further voices.

    Raises:
        ValueError: naming the flag and what is accepted.
    """
    from vllm.unison.model.spec import multistream_spec

    spec = multistream_spec(model_config)
    assert spec is not None
    voices = {*spec.voices, *recorded}
    aliases: dict[str, str] = {}
    for item in getattr(args, "voice_alias", None) or []:
        name, equals, voice = item.partition("=")
        if not (name and equals and voice):
            raise ValueError(f"{FLAG} must be NAME=VOICE, not {item!r}")
        if voice not in voices:
            raise ValueError(f"{FLAG} {item} must name one of the voices, {sorted(voices)}")
        if name in voices or name in aliases:
            raise ValueError(f"{FLAG} {item} gives a name that is taken: {name!r}")
        aliases[name] = voice
    return aliases
