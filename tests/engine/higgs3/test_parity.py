# SPDX-License-Identifier: Apache-2.0
"""Contract 1 for Higgs TTS 3: all streams equal a loop over transformers' Qwen3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.higgs3.cases import (
    DRAWN,
    GREEDY,
    LONG,
    OTHER_VOICE,
    SHORT,
    SHORT_VOICE,
    VOICE,
    HiggsCase,
    assert_equals,
    drawn,
    generate,
    rows_of,
)
from tests.engine.higgs3.reference import Higgs3Reference
from tests.engine.streams.conftest import Steps, open_engine
from tests.support.higgs3 import LEAD_IN, NUM_CODES
from vllm import LLM, SamplingParams
from vllm.unison.frontend.errors import InvalidRequestError

VOICES = [
    HiggsCase(SHORT, 25, GREEDY, voice, said)
    for voice in (None, VOICE, SHORT_VOICE, OTHER_VOICE)
    for said in ((None, "what it says") if voice is not None else (None,))
]


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("plain"), max_num_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(higgs: Callable[[str], Higgs3Reference]) -> Higgs3Reference:
    return higgs("plain")


def test_rows_of_all_streams(engine: LLM, reference: Higgs3Reference, emitted_steps: Steps) -> None:
    cases = [*VOICES, HiggsCase(LONG, 30), HiggsCase(SHORT, 30, drawn(1)), HiggsCase(SHORT, 1)]
    for case, output in zip(cases, generate(engine, cases), strict=True):
        expected = case.expected(reference)
        assert_equals(output, expected, case)
        (steps,) = [s for key, s in emitted_steps.items() if key.split("-")[0] == output.request_id]
        rows = rows_of(steps)
        assert np.array_equal(rows, expected.rows), case
        # The id before the codes is on each stream for as many rows as it is delayed.
        assert (rows[:8] == LEAD_IN).sum() == 28 or case.max_frames < 8
        completion: Any = output.outputs[0]
        samples = reference.samples(expected.codes)
        assert completion.audio.sample_rate == 24000
        np.testing.assert_allclose(completion.audio.samples, samples, atol=1e-5)
    assert_nothing_left(engine)


def test_a_voice_and_its_text_change_what_is_said(engine: LLM) -> None:
    outputs = generate(engine, VOICES)
    codes = {output.outputs[0].audio.codes.tobytes() for output in outputs}  # type: ignore[union-attr]
    assert len(codes) == len(VOICES)


def test_the_prompt_is_the_published_one(engine: LLM, reference: Higgs3Reference) -> None:
    (plain, cloned) = generate(engine, [HiggsCase("ab"), HiggsCase("ab", voice=VOICE, said="c")])
    token, ids = reference.token, reference.ids("ab")
    assert plain.prompt_token_ids == [token("<|tts|>"), token("<|text|>"), *ids, token("<|audio|>")]
    found = cloned.prompt_token_ids
    assert found is not None and len(found) == len(ids) + 6 + 30 + 7
    assert found[:3] == [token("<|tts|>"), token("<|ref_text|>"), *reference.ids("c")]
    assert found[3] == token("<|ref_audio|>")
    assert found[4 + 30 + 7 :] == [token("<|text|>"), *ids, token("<|audio|>")]


def test_a_recording_is_shared_by_the_prefix_cache(engine: LLM, reference: Higgs3Reference) -> None:
    cases = [HiggsCase(text, 5, GREEDY, VOICE, "shared") for text in ("one", "two", "three")]
    for case, output in zip(cases, [generate(engine, [c])[0] for c in cases], strict=True):
        assert_equals(output, case.expected(reference), case)
        shared = len(reference.prompt("", VOICE, "shared")) - 2
        if case is not cases[0]:
            assert (output.num_cached_tokens or 0) >= shared // 32 * 32 > 0
    # Another recording of the same length shares nothing with it but what is said before.
    (other,) = generate(engine, [HiggsCase("one", 5, GREEDY, VOICE + 0.01, "shared")])
    assert (other.num_cached_tokens or 0) < 32


def test_logits_are_those_of_transformers(
    engine: LLM, reference: Higgs3Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the largest positions, so that the base of the rotary embedding is seen."""
    from vllm.model_executor.models.speech_lm import SpeechLMForConditionalGeneration

    found: list[torch.Tensor] = []
    compute = SpeechLMForConditionalGeneration.audio_logits

    def recording(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        found.append(compute(self, hidden_states).clone())
        return found[-1]

    monkeypatch.setattr(SpeechLMForConditionalGeneration, "audio_logits", recording)
    text = "long " * 40
    generate(engine, [HiggsCase(text, 1)])
    inputs = reference.prompt(text)
    hidden = reference._body(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
    expected = (reference._codes @ hidden).view(8, -1)
    own = found[0].view(8, -1)
    # The engine's order of candidates: stream 0 has the end right after its codes.
    assert own.shape == expected.shape
    torch.testing.assert_close(own[:, :NUM_CODES], expected[:, :NUM_CODES], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        own[:, NUM_CODES:].sort().values, expected[:, NUM_CODES:].sort().values, atol=1e-4, rtol=0
    )


def test_a_request_that_says_nothing_gets_the_servers_defaults(engine: LLM) -> None:
    defaults = engine.get_default_sampling_params()
    defaults.seed, defaults.max_tokens = 1, 12
    said = SamplingParams(seed=1, max_tokens=12, temperature=0.8, top_p=0.8, top_k=30)
    plain = SamplingParams(seed=1, max_tokens=12)
    codes = [
        output.outputs[0].audio.codes.tolist()  # type: ignore[union-attr]
        for output in engine.generate([SHORT] * 3, [defaults, said, plain], use_tqdm=False)
    ]
    assert codes[0] == codes[1] != codes[2]
    # As many frames as the context has room for: the published limit is beyond it.
    (whole,) = engine.generate([SHORT], use_tqdm=False)
    assert len(whole.outputs[0].token_ids) == 256 - len(whole.prompt_token_ids or ())


def test_a_seed_gives_the_same_and_another_seed_does_not(engine: LLM) -> None:
    cases = [HiggsCase(SHORT, 15, DRAWN | {"seed": seed}, VOICE) for seed in (1, 2, 1)]
    first, other, again = (
        output.outputs[0].audio.codes.tobytes()  # type: ignore[union-attr]
        for output in generate(engine, cases)
    )
    assert first == again != other


def test_guidance_needs_a_negative_prompt(engine: LLM) -> None:
    """The model has no null prompt, and is not made for guidance."""
    guided = GREEDY | {"guidance_scale": 2.0}
    with pytest.raises(InvalidRequestError, match=r"^negative_prompt must be given"):
        generate(engine, [HiggsCase(SHORT, 10, guided, VOICE)])
    same, other, plain = (
        output.outputs[0].audio.codes.tobytes()  # type: ignore[union-attr]
        for output in generate(
            engine,
            [
                HiggsCase(SHORT, 10, guided | {"negative_prompt": SHORT}),
                HiggsCase(SHORT, 10, guided | {"negative_prompt": "other"}),
                HiggsCase(SHORT, 10),
            ],
        )
    )
    # Lanes that are alike merge to what one of them gives.
    assert same == plain != other
    assert_nothing_left(engine)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt": ""}, "prompt must hold text"),
        (
            {"prompt": "a", "mm_processor_kwargs": {"reference_text": "b"}},
            "reference_text must come with what it is the text of",
        ),
        (
            {"prompt": "a", "multi_modal_data": {"audio": (VOICE, 24000)}},
            "audio: the model has no task from text and audio",
        ),
        ({"prompt": "a", "mm_processor_kwargs": {"voice": "Ann"}}, r"voice must be one of \[\]"),
        ({"prompt": "a", "multi_modal_data": {"voice": ([], 24000)}}, "voice must have at least"),
    ],
)
def test_a_request_is_refused_by_its_field(engine: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(prompt, SamplingParams(max_tokens=2), use_tqdm=False)
