# SPDX-License-Identifier: Apache-2.0
"""Fills that the model emits itself, and ends other than the plain one, through an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.streams.cases import Case, assert_equals, noise_clip
from tests.engine.streams.checkpoints import write_speech_lm
from tests.engine.streams.conftest import Steps, open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    END_TOKEN,
    FIRST_CODE,
    FIRST_TEXT,
    PAD,
    stream_layout,
)

TALK = {"text_to_speech": [BEGIN_TEXT, "text", BEGIN_AUDIO]}
CLOSING, EARLY_END, LEAD_IN, TAIL = 7, 8, 9, 10


def like_opuslm(folder: Path) -> Path:
    """Nothing is forced once stream 0 has ended, for as many steps as the largest delay."""
    layout = stream_layout(5, delay_scope="sequence", text_then_audio=True)
    layout["fills"] = {"tail": {"token_ids": [END_TOKEN, *[PAD] * 4], "sampled": True}}
    layout["phases"][1]["end_rule"] = {"kind": "id_on_primary", "extra_steps": 1}
    layout["outside_codebook"] = 3
    return write_speech_lm(folder, "qwen3", layout, louder={PAD: 1.5}, head_offsets=False, seed=1)


def like_bagpiper(folder: Path) -> Path:
    """Each stream has a pad of its own, which it samples; the end comes after the tail."""
    layout = stream_layout(4, text_then_audio=True)
    pads = [FIRST_CODE + 65 * stream for stream in range(4)]
    layout["vocabulary_size"] = FIRST_CODE + 4 * 65
    layout["slices"] = [[pad + 1, pad + 65] for pad in pads]
    layout["outside_codebook"] = 0
    own = {"token_ids": pads, "sampled": True}
    layout["fills"] = {"lead_in": own, "tail": own}
    layout["phases"][1]["end_rule"] = {"kind": "after_tail", "first_step": 6}
    return write_speech_lm(
        folder,
        "qwen3",
        layout,
        louder=dict.fromkeys(pads, 1.6) | {END_TOKEN: 1.3},
        seed=2,
        embedding={"primary_skip_ids": [], "auxiliary_skip_ids": [PAD]},
        more={"tasks": TALK},
    )


def with_everything_else(folder: Path) -> Path:
    """Forced fills that differ by place, ends that are ignored at first, and a closing id."""
    layout = stream_layout(4, delays=[0, 0, 3, 1], text_then_audio=True, delay_scope="sequence")
    layout["fills"] = {
        "lead_in": {"token_ids": LEAD_IN, "sampled": [False, False, True, False]},
        "end": {"token_ids": [TAIL, *[EARLY_END] * 3]},
        "tail": {"token_ids": TAIL},
    }
    layout["phases"][1]["end_rule"] = {
        "first_step": 5,
        "forbids_earlier": False,
        "extra_steps": 1,
        "closing": [CLOSING, PAD],
    }
    layout["phases"][1]["transitions"].append(
        {"token": EARLY_END, "to": "text", "forced": [BEGIN_TEXT]}
    )
    layout["outside_codebook"] = "drop"
    return write_speech_lm(
        folder, "llama", layout, louder={LEAD_IN: 1.5, EARLY_END: 1.6}, end_text=5, seed=3
    )


CHECKPOINTS = {make.__name__: make for make in (like_opuslm, like_bagpiper, with_everything_else)}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 40}


def cases_of(reference: Reference) -> list[Case]:
    """Requests that end by their rule, at every number of steps by their limit, and in text."""
    cases = [Case(text="speak up", options={"max_tokens": count}) for count in range(1, 12)]
    options = {"max_tokens": 40, **SAMPLED}
    cases += [
        Case(text=f"{seed:2d} crosses a block soon", options=options | {"seed": seed})
        for seed in range(1, 13)
    ]
    cases.append(Case(text="no end", options={"max_tokens": 30, "seed": 1, "ignore_eos": True}))
    cases.append(Case(text="late", options={"max_tokens": 40, "seed": 2, "min_tokens": 20}))
    text = (BEGIN_TEXT, FIRST_TEXT + 60, FIRST_TEXT + 61)
    cases += [
        Case(token_ids=text, options={"max_tokens": 50, "seed": seed, **SAMPLED})
        for seed in range(1, 4)
    ]
    if "speech_to_text" in reference.tasks:
        cases.append(Case(text="v", clip=noise_clip(9, seed=3), options={"max_tokens": 30}))
    return cases


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reference]]:
    """All checkpoints with their references.

    Made before an engine runs, which gives transformers classes of its own.
    """
    folders = {name: make(tmp_path_factory.mktemp(name)) for name, make in CHECKPOINTS.items()}
    return {name: (folder, Reference(folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_tokens_of_all_streams_equal_the_references(
    name: str,
    asynchronous: bool,
    models: dict[str, tuple[Path, Reference]],
    emitted_steps: Steps,
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    folder, reference = models[name]
    cases = cases_of(reference)
    with open_engine(folder, num_gpu_blocks_override=9) as llm:
        prompts = [case.prompt for case in cases]
        outputs = llm.generate(prompts, [case.params for case in cases], use_tqdm=False)
        reasons = set()
        by_request = {key.split("-")[0]: steps for key, steps in emitted_steps.items()}
        for case, output in zip(cases, outputs, strict=True):
            expected = case.expected(reference)
            assert by_request[output.request_id] == expected.steps, case
            assert_equals(output, expected, f"{name} {case}")
            reasons.add(expected.finish_reason)
        assert reasons == {"stop", "length"}
        assert preempted
        # Streamed, the same frames.
        for case, output in list(zip(cases, outputs, strict=True))[::4]:
            codes = streamed_codes(llm, case)
            audio = output.outputs[0].audio
            assert codes == ([] if audio is None else audio.codes.tolist()), case


def streamed_codes(llm: LLM, case: Case) -> list[list[int]]:
    """Codes of the pieces of audio that a streaming request gets."""
    engine = llm.llm_engine
    params = case.with_options(output_kind=RequestOutputKind.DELTA).params
    engine.add_request(f"streamed-{case.text}", case.prompt, params)
    codes: list[list[int]] = []
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            audio = output.outputs[0].audio
            codes += [] if audio is None else audio.codes.tolist()
    return codes
