# SPDX-License-Identifier: Apache-2.0
"""The packaged model really speaks and listens; what breaks a stream or guidance is noticed.

A short version of benchmarks/evaluate_default_model.py. The sentences are not of the training, the
evaluator of speech is pocketsphinx with a grammar of their words.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.benchmark_numerics import SENTENCES as SPOKEN
from benchmarks.speech_evaluator import Evaluator
from benchmarks.speech_scores import compared_words, error_rate
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Guidance, Reference, Settings
from tests.support.demonstration import SENTENCE
from vllm import LLM, SamplingParams
from vllm.unison.frontend.prompts import stream_prompt_builder
from vllm.unison.model.spec import multistream_spec
from vllm.unison.packaged_model import DEFAULT_MODEL, packaged_model
from vllm.unison.sampler.batch_groups import GuidedBatch

VOICES = ("heart", "joe")
SENTENCES = SPOKEN[:10]
COUNT = len(SENTENCES)
WORDS = sorted({word for said in (*SENTENCES, SENTENCE) for word in compared_words(said)})
MAX_ERRORS = 0.45
"""Word error rate of generated speech. The recognizer, which takes any word of WORDS after any,
misses 28 % of the model's; 78 % where two streams are exchanged, 57 % without delays."""

MAX_OWN_ERRORS = 0.4
"""Word error rate of the model when it hears itself; it is 24 %."""


@pytest.fixture(scope="module")
def engine() -> Iterator[LLM]:
    with open_engine(Path(DEFAULT_MODEL)) as llm:
        yield llm


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(WORDS)


def speak(llm: LLM, **options: Any) -> list[Any]:
    """Completions of SENTENCES by VOICES in turn, with the model's defaults."""
    spec = multistream_spec(llm.model_config)
    assert spec is not None
    fields = {**spec.generation_defaults["text_to_speech"], **options}
    prompts: list[Any] = [
        {"prompt": text, "mm_processor_kwargs": {"voice": voice}}
        for text, voice in zip(SENTENCES, itertools.cycle(VOICES), strict=False)
    ]
    params = [SamplingParams(seed=seed, **fields) for seed in range(COUNT)]
    return [o.outputs[0] for o in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def spoken(engine: LLM) -> list[Any]:
    return speak(engine)


def errors(evaluator: Evaluator, clips: list[NDArray[np.float32]]) -> float:
    return error_rate(SENTENCES, [evaluator.transcribe(clip) for clip in clips])


def transcribe(llm: LLM, clips: list[Any]) -> list[str]:
    prompts: list[Any] = [
        {"prompt": "", "multi_modal_data": {"audio": (clip, 16000)}} for clip in clips
    ]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=80), use_tqdm=False)
    return [output.outputs[0].text.strip() for output in outputs]


def test_it_is_served_under_its_name(engine):
    assert engine.model_config.served_model_name == DEFAULT_MODEL
    assert Path(engine.model_config.model) == packaged_model()


def test_the_package_stays_small():
    size = sum(file.stat().st_size for file in packaged_model().rglob("*") if file.is_file())
    assert size <= 45_000_000


def test_an_independent_recognizer_understands_what_it_says(spoken, evaluator):
    assert {completion.finish_reason for completion in spoken} == {"stop"}
    assert errors(evaluator, [c.audio.samples for c in spoken]) <= MAX_ERRORS


def test_figures_and_signs_are_read_as_words(engine):
    texts = ["Dr. Gray paid $5 – at 9:30.", "Doctor Gray paid five dollars, at nine thirty."]
    params = SamplingParams(temperature=0, max_tokens=60)
    prompts: list[Any] = [{"prompt": text} for text in texts]
    written, read = engine.generate(prompts, params, use_tqdm=False)
    assert written.prompt_token_ids == read.prompt_token_ids
    assert written.prompt == texts[0]
    assert len(written.outputs[0].audio.codes) > 10
    np.testing.assert_array_equal(written.outputs[0].audio.codes, read.outputs[0].audio.codes)


def test_the_demonstrations_sentence_is_understood(engine, evaluator):
    spec = multistream_spec(engine.model_config)
    assert spec is not None
    params = SamplingParams(seed=0, **spec.generation_defaults["text_to_speech"])
    (output,) = engine.generate(SENTENCE, params, use_tqdm=False)
    samples = output.outputs[0].audio.samples
    assert error_rate([SENTENCE], [evaluator.transcribe(samples)]) <= MAX_ERRORS
    assert transcribe(engine, [samples]) == [SENTENCE]


def test_it_understands_itself(engine, spoken):
    heard = transcribe(engine, [c.audio.samples for c in spoken])
    assert error_rate(SENTENCES, heard) <= MAX_OWN_ERRORS


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The slow loop on the packaged weights; it knows no codec of ours, and needs none."""
    folder = tmp_path_factory.mktemp("reference")
    shutil.copy(packaged_model() / "model.safetensors", folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(packaged_model() / file, folder)
    config = json.loads((packaged_model() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"codec": None}))
    return Reference(folder)


def test_greedy_guided_speech_equals_the_references(engine, reference):
    assert greedy_agreement(engine, reference) == 1.0


def test_guidance_that_is_lost_does_not_equal_the_references(engine, reference, monkeypatch):
    make = GuidedBatch.__init__

    def unguided(batch: GuidedBatch, *arguments: Any) -> None:
        make(batch, *arguments)
        batch.groups.weights[:] = 0
        batch.groups.weights[:, 0] = 1

    monkeypatch.setattr(GuidedBatch, "__init__", unguided)
    assert greedy_agreement(engine, reference) < 0.9


def as_told(text: str) -> str:
    """A text without figures, with the packaged lexicon's spellings."""
    with gzip.open(packaged_model() / "lexicon.tsv.gz", "rt") as lines:
        spellings = dict(line.rstrip("\n").split("\t") for line in lines)
    return re.sub(r"[a-zA-Z']+", lambda word: spellings.get(word[0].lower(), word[0]), text)


def greedy_agreement(llm: LLM, reference: Reference) -> float:
    """Part of the reference's frames, guided with scale 2 and greedy, that the engine says too."""
    config = json.loads((packaged_model() / "config.json").read_text())
    tokenizer = llm.get_tokenizer()
    same = total = 0
    for text in SENTENCES[:2]:
        ids = [
            part_ids
            for part in config["tasks"]["text_to_speech"]
            for part_ids in (
                [part]
                if isinstance(part, int)
                else config["voices"]["joe"]
                if part == "voice"
                else tokenizer.encode(as_told(text), add_special_tokens=False)
            )
        ]
        prompt = reference.delayed([[token, *reference.pads[1:]] for token in ids])
        null = [[token, *reference.pads[1:]] for token in config["guidance"]["null_prompt"]]
        expected = reference.generate(
            prompt,
            Settings(300, 512, streams=((0.0, 0, 1.0),) * reference.num_streams),
            Guidance(2.0, ((-1.0, null),)),
        )
        asked: Any = {"prompt": text, "mm_processor_kwargs": {"voice": "joe"}}
        (output,) = llm.generate(
            asked,
            SamplingParams(temperature=0, max_tokens=300, guidance_scale=2.0),
            use_tqdm=False,
        )
        audio = output.outputs[0].audio
        assert audio is not None
        theirs, ours = np.array(expected.codes), audio.codes
        length = min(len(theirs), len(ours))
        same += (theirs[:length] == ours[:length]).all(1).sum()
        total += max(len(theirs), len(ours))
    return same / total


BREAKAGES = {
    "two streams exchanged": {"codebook_streams": [0, 2, 1, 3, 4, 5, 6, 7]},
    "no delays": {"delays": [0] * 8},
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("change", BREAKAGES.values(), ids=list(BREAKAGES))
def test_a_broken_layout_is_heard(change, evaluator, tmp_path):
    """The bound on errors is tight enough to notice a stream that is wrong."""
    folder = tmp_path / "broken"
    shutil.copytree(packaged_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["stream_layout"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with open_engine(folder) as llm:
        clips = [c.audio.samples for c in speak(llm) if c.audio is not None]
    heard = [evaluator.transcribe(clip) for clip in clips] + [""] * (COUNT - len(clips))
    assert error_rate(SENTENCES, heard) > MAX_ERRORS


def test_clips_of_one_call_are_read_as_if_alone(engine: LLM, spoken: list[Any]) -> None:
    """In every form of audio; to the bit, so the prompts have the same ids."""
    forms: list[Any] = []
    for number, completion in enumerate(spoken):
        audio = completion.audio
        forms.append(
            (
                audio,
                (np.stack([audio.samples] * 2, axis=1), audio.sample_rate),
                {"array": audio.samples.tolist(), "sampling_rate": audio.sample_rate},
            )[number % 3]
        )
    prompts: list[Any] = [{"prompt": "", "multi_modal_data": {"audio": form}} for form in forms]
    params = SamplingParams(temperature=0, max_tokens=1)
    together = engine.generate(prompts, params, use_tqdm=False)
    stream_prompt_builder(engine.renderer).encoder._codes.clear()  # type: ignore[union-attr]
    for completion, output in zip(spoken, together, strict=True):
        alone: Any = {
            "prompt": "",
            "multi_modal_data": {"audio": (completion.audio.samples, completion.audio.sample_rate)},
        }
        (expected,) = engine.generate(alone, params, use_tqdm=False)
        assert output.prompt_token_ids == expected.prompt_token_ids
        assert len(output.prompt_token_ids or ()) > len(completion.audio.codes)
