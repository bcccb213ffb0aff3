# SPDX-License-Identifier: Apache-2.0
"""Contract 1 for Bagpiper: what ESPnet's own classes generated from the same published folder.

They ran elsewhere (tests/references/bagpiper/espnet.sh): greedily, in float32, with the
folder's own YAML, and its weights loaded strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.streams.conftest import Steps, open_engine
from tests.support.bagpiper import (
    CODEBOOK_SIZE,
    DECODING,
    FIRST_CODE,
    NUM_CODEBOOKS,
    SAMPLE_RATE,
    bagpiper_tensors,
    clip,
)
from vllm import LLM, SamplingParams

STORED = json.loads(
    (Path(__file__).parents[2] / "references" / "bagpiper" / "espnet.json").read_text()
)
CASES: list[dict[str, Any]] = STORED["cases"]
ASSISTANT, TEXT, AUDIO = 6, 7, 8


@pytest.fixture(scope="module")
def engine(published: Path) -> Iterator[LLM]:
    with open_engine(published) as llm:
        yield llm


def prompt_of(case: dict[str, Any]) -> Any:
    """A case's request."""
    prompt: dict[str, Any] = {"prompt": case.get("text_in", ""), "mm_processor_kwargs": {}}
    if "messages" in case:
        prompt["mm_processor_kwargs"] = {"task": case["task"], "messages": messages_of(case)}
    elif not case["task"].startswith("audio"):
        prompt["mm_processor_kwargs"]["task"] = case["task"]
    else:
        prompt["multi_modal_data"] = {"audio": (clip(), SAMPLE_RATE)}
    return prompt


def messages_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a case that is a conversation."""
    heard = {"type": "audio", "audio": (clip(), SAMPLE_RATE)}
    return [
        {"role": role, "content": [heard] if modality == "audio" else said}
        for role, modality, said in case["messages"]
    ]


def params_of(case: dict[str, Any]) -> SamplingParams:
    """A case's sampling parameters; text is as long as ESPnet let it be."""
    guidance: dict[str, Any] = {"guidance_scale": float(case["cfg"])} if "cfg" in case else {}
    limit = sum(int(DECODING[modality]["max_step"]) for modality in case["modalities"])
    return SamplingParams(temperature=0, max_tokens=2 * limit if guidance else limit, **guidance)


def steps_of(case: dict[str, Any]) -> list[list[int]]:
    """[num_steps][num_streams] what a case's request emits, with what leads to its segments."""
    steps: list[list[int]] = []
    ids = {"text": TEXT, "audio": AUDIO}
    for modality, segment in zip(case["modalities"], case["segments"], strict=True):
        leads = [ASSISTANT, ids[modality]] if steps else []
        if not steps and case["task"] == "any":
            # The model's own choice.
            leads = [ids[modality]]
        steps += [[token, *[0] * (NUM_CODEBOOKS - 1)] for token in leads]
        steps += segment
    return steps


def codes_of(rows: list[list[int]]) -> np.ndarray:
    """[num_frames, num_codebooks] codes of a segment of audio, its end included."""
    frames = len(rows) - NUM_CODEBOOKS
    codes = np.zeros((frames, NUM_CODEBOOKS), np.int64)
    for frame in range(frames):
        for stream in range(NUM_CODEBOOKS):
            first = FIRST_CODE + (CODEBOOK_SIZE + 1) * stream + 1
            codes[frame, stream] = max(rows[frame + stream][stream] - first, 0)
    return codes


def test_the_reference_ran_on_this_model() -> None:
    total = sum(float(t.double().abs().sum()) for t in bagpiper_tensors().values())
    num_ids = len(bagpiper_tensors()["lm_head.weight"])
    masks = STORED["checksum"] - total
    # Beside the parameters there are the loss's weights and masks, which are whole numbers.
    assert masks > num_ids and abs(masks - round(masks)) < 1e-6


@pytest.mark.parametrize("is_guided", [True, False])
def test_all_streams_are_those_of_espnet(
    engine: LLM, is_guided: bool, emitted_steps: Steps
) -> None:
    cases = [case for case in CASES if (case.get("cfg", 1) > 1) == is_guided]
    assert len(cases) > 2
    outputs = engine.generate(
        [prompt_of(case) for case in cases], [params_of(case) for case in cases], use_tqdm=False
    )
    for case, output, steps in zip(cases, outputs, emitted_steps.values(), strict=True):
        begun = [row[0] for row in case["prompt"]]
        last = {"caption_to_audio": [AUDIO], "any": []}.get(case["task"], [TEXT])
        assert output.prompt_token_ids == [*begun, ASSISTANT, *last], case
        expected = steps_of(case)
        assert steps[: len(expected) - 1] == expected[:-1], case
        # What streams emit beside the end counts for nothing.
        assert [row[0] for row in steps] == [row[0] for row in expected], case
        made = output.outputs[0]
        assert made.finish_reason == ("length" if expected[-1][0] > AUDIO else "stop")
        if case["modalities"][-1] == "audio":
            codes = codes_of(case["segments"][-1])
            assert made.audio is not None
            assert np.array_equal(made.audio.codes, codes)
            assert made.audio.samples.shape == (320 * len(codes),)
            np.testing.assert_allclose(made.audio.samples[::97], case["samples"], atol=1e-4)
        else:
            assert made.audio is None
    assert_nothing_left(engine)


def test_texts_are_those_of_espnet(engine: LLM) -> None:
    cases = [case for case in CASES if case["text"]]
    outputs = engine.generate(
        [prompt_of(case) for case in cases], [params_of(case) for case in cases], use_tqdm=False
    )
    # Bytes at the end that make no letter yet are kept back.
    expected = [case["text"][0].rstrip("\N{REPLACEMENT CHARACTER}") for case in cases]
    assert [output.outputs[0].text for output in outputs] == expected


def test_chat_takes_the_task_that_fits(engine: Any, emitted_steps: Steps) -> None:
    """Without a name: audio after plain text, and text after what is heard."""
    cases = [c for c in CASES if "messages" in c and c["task"] != "text_to_text"]
    assert len(cases) > 2
    params = [params_of(case) for case in cases]
    outputs = engine.chat([messages_of(case) for case in cases], params, use_tqdm=False)
    for case, output, steps in zip(cases, outputs, emitted_steps.values(), strict=True):
        expected = steps_of(case)
        assert steps[: len(expected) - 1] == expected[:-1], case
        assert (output.outputs[0].audio is None) == (case["modalities"] == ["text"])


@pytest.mark.parametrize(
    ("task", "said", "message"),
    [
        (
            "any",
            [("user", "hi"), ("assistant", "hi"), ("user", "x")],
            r"messages\[1\].role must be",
        ),
        ("any", [("scene", "a room"), ("user", "x")], r"\['system', 'user'\], not 'scene'"),
        (
            "any",
            [("user", "x"), ("system", "be kind")],
            r"messages\[1\].role must be 'user', whose",
        ),
        ("any", [("user", ""), ("user", "x")], r"messages\[0\].content must hold text, not ''"),
        ("any", [("user", None)], r"for what the messages hold, not 'any'"),
        (
            "audio_to_text",
            [("user", None), ("user", None)],
            r"messages\[1\].content must hold no s",
        ),
        ("speak", [("user", "x")], r"task must be one of \['text_to_audio', .*, not 'speak'"),
    ],
)
def test_conversations_that_are_refused(engine: Any, task: str, said: Any, message: str) -> None:
    heard = [{"type": "audio", "audio": (clip(), SAMPLE_RATE)}]
    messages = [{"role": role, "content": heard if x is None else x} for role, x in said]
    with pytest.raises(ValueError, match=message):
        engine.chat(messages, SamplingParams(max_tokens=2), use_tqdm=False, task=task)


def test_a_clip_that_is_refused_is_named_by_its_message(engine: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": np.zeros((0,), "f4")}]}]
    with pytest.raises(ValueError, match=r"messages\[0\].content must"):
        engine.chat(messages, SamplingParams(max_tokens=2), use_tqdm=False)
