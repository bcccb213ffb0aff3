# SPDX-License-Identifier: Apache-2.0
"""The stream layouts of two published models, as their config.json would hold them."""

from typing import Any

OPUSLM_PAD, OPUSLM_END = 0, 5
OPUSLM_END_OF_UTTERANCE, OPUSLM_ASSISTANT, OPUSLM_BEGIN_AUDIO = 11, 10, 34


def opuslm_7b() -> dict[str, Any]:
    """OpusLM 7B: stream 0 carries SSL units, streams 1 to 8 DAC codes of 1024 each."""
    first_dac = 5256
    dac = [[first_dac + 1024 * k, first_dac + 1024 * (k + 1)] for k in range(8)]
    end = {"token": OPUSLM_END, "to": "end"}
    speak = [*[OPUSLM_PAD] * 8, OPUSLM_ASSISTANT, OPUSLM_BEGIN_AUDIO]
    return {
        "delays": list(range(9)),
        "vocabulary_size": 113870,
        "slices": [[256, 5256], *dac],
        "pad_token_ids": OPUSLM_PAD,
        "text_slice": [13448, 113800],
        "codebook_streams": list(range(1, 9)),
        "delay_scope": "sequence",
        "outside_codebook": 0,
        # Nothing is forced once stream 0 has ended: it samples among units and its end, and the
        # others among codes and the pad.
        "fills": {"tail": {"token_ids": [OPUSLM_END] + [OPUSLM_PAD] * 8, "sampled": True}},
        # A task's id says in which phase its requests begin.
        "phases": [
            {
                "name": "text",
                "kind": "text",
                "begin_tokens": [64, 80],
                "transitions": [end],
            },
            {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [82, 81, 83],
                "transitions": [end],
                "end_rule": {"kind": "id_on_primary", "first_step": 3, "extra_steps": 1},
            },
            {
                "name": "turn",
                "kind": "text",
                "begin_tokens": [88],
                "transitions": [end, {"token": OPUSLM_END_OF_UTTERANCE, "to": "end"}],
            },
            {
                "name": "reply",
                "kind": "text",
                "begin_tokens": [89],
                "transitions": [
                    {"token": token, "to": "audio", "forced": speak}
                    for token in (OPUSLM_END, OPUSLM_END_OF_UTTERANCE)
                ],
            },
        ],
    }


BAGPIPER_PAD = 0
BAGPIPER_END, BAGPIPER_END_OF_TURN = 2, 3
BAGPIPER_ASSISTANT, BAGPIPER_TEXT, BAGPIPER_AUDIO = 6, 7, 8


def bagpiper() -> dict[str, Any]:
    """Bagpiper: text, then 8 streams of X-codec codes of 1024 each, in one request."""
    first_text, first_code = 256, 256 + 151936
    # Each stream owns 1025 ids, of which the first is its pad in audio.
    begins = [first_code + 1025 * k for k in range(8)]
    return {
        "delays": list(range(8)),
        "vocabulary_size": first_code + 8 * 1025,
        "slices": [[begin + 1, begin + 1025] for begin in begins],
        "pad_token_ids": BAGPIPER_PAD,
        "text_slice": [first_text, first_code],
        "delay_scope": "segment",
        # Such a pad among the codes is decoded as code 0.
        "outside_codebook": 0,
        "fills": {
            "lead_in": {"token_ids": begins, "sampled": True},
            "tail": {"token_ids": begins, "sampled": True},
        },
        "phases": [
            {
                "name": "text",
                "kind": "text",
                "begin_tokens": [BAGPIPER_TEXT],
                # Whichever way the text ends, audio follows.
                "transitions": [
                    {"token": token, "to": "audio", "forced": [BAGPIPER_ASSISTANT, BAGPIPER_AUDIO]}
                    for token in (BAGPIPER_END, BAGPIPER_END_OF_TURN)
                ],
                "end_rule": {"first_step": 1},
            },
            {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [BAGPIPER_AUDIO],
                "transitions": [
                    {"token": BAGPIPER_END, "to": "end"},
                    {"token": BAGPIPER_END_OF_TURN, "to": "end"},
                ],
                "end_rule": {"kind": "after_tail", "first_step": 50},
            },
        ],
    }
