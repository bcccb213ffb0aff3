# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the training of the open-vocabulary model: texts, labels, layout, network."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.default_model.training_modules import training_modules
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.prompts import PromptBuilder
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.packaged_model import packaged_model

corpus, encode, layout, letters, model, phones, templates, texts, training = training_modules(
    "corpus",
    "encode",
    "layout",
    "letters",
    "model",
    "phones",
    "templates",
    "texts",
    "train_language_model",
)

NOUNS = [f"{a}{b}" for a in ("foot", "basket", "snow", "hand") for b in ("ball", "balls", "man")]


def test_words_are_compared_without_case_and_punctuation():
    assert texts.words_of("It's a well-known Fact, isn't it?") == (
        *("it's", "a", "well", "known", "fact", "isn't", "it"),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "distance"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a c", 1),
        ("a b c", "b c d", 2),
        ("a b c", "c b a", 2),
        ("a b c d", "d c b a", 4),
        ("", "a b", 2),
    ],
)
def test_word_distance(ours: str, theirs: str, distance: int):
    assert texts.word_distance(ours.split(), theirs.split()) == distance
    assert texts.word_distance(theirs.split(), ours.split()) == distance


def test_near_sentences_are_found_exactly():
    rng = random.Random(1)
    kept = [" ".join(rng.choices("abcdef", k=rng.randint(3, 7))) for _ in range(40)]
    index = texts.NearbySentences(kept)
    found = set()
    for _ in range(400):
        sentence = " ".join(rng.choices("abcdef", k=rng.randint(3, 9)))
        words = texts.words_of(sentence)
        near = min(texts.word_distance(words, texts.words_of(other)) for other in kept) <= 2
        assert index.near(sentence) == near
        found.add(near)
    assert found == {True, False}


def test_held_out_sentences_do_not_depend_on_how_they_are_written():
    ends = "abcdefghij"
    sentences = [f"Number {a}{b}{c}, please" for a in "ABCD" for b in ends for c in ends]
    kept = [s for s in sentences if texts.is_held_out(s)]
    assert 2 <= len(kept) <= 25
    assert all(texts.is_held_out(s.lower().replace(",", "") + ".") for s in kept)


def test_the_evaluation_is_kept_from_training():
    evaluation = corpus.read_texts(texts.EVALUATION)
    assert len({texts.words_of(sentence) for sentence in evaluation}) == 300
    assert all(texts.is_held_out(sentence) for sentence in evaluation)


def test_nothing_near_the_evaluation_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = texts.EVALUATION.read_text().splitlines(keepends=True)[:30]
    (tmp_path / "fixed.txt").write_text("".join(lines))
    evaluation = corpus.read_texts(tmp_path / "fixed.txt")
    near = [f"Well, {sentence.removesuffix('.')} then." for sentence in evaluation]
    rng = random.Random(3)
    learned = [" ".join(["All", *rng.choices(NOUNS, k=6)]) + "." for _ in range(200)]
    everyday = [*near, *evaluation, *learned]
    monkeypatch.setattr(texts, "EVALUATION", tmp_path / "fixed.txt")
    monkeypatch.setattr(texts, "_sources", lambda seed: {"everyday": everyday})
    texts.write_texts(tmp_path, validation=4)
    assert (tmp_path / "evaluation.txt").read_text() == "".join(lines)
    train, validation = (
        corpus.read_texts(tmp_path / f"{name}.txt") for name in ("train", "validation")
    )
    assert len(validation) == 4
    assert len(train) > 100
    index = texts.NearbySentences([*evaluation, *validation])
    assert not any(map(index.near, train))


def test_everyday_sentences_are_repeatable_and_read():
    first = list(itertools.islice(templates.everyday_sentences(5, ["zebra"]), 200))
    assert first == list(itertools.islice(templates.everyday_sentences(5, ["zebra"]), 200))
    assert len(set(first)) > 190
    assert not any(character.isdigit() or character in "{}$" for s in first for character in s)


def test_isotonic_is_the_nearest_nondecreasing_sequence():
    np.testing.assert_allclose(
        phones.isotonic(np.array([1.0, 3, 2, 2, 5])), [1, 7 / 3] + [7 / 3] * 2 + [5]
    )
    np.testing.assert_allclose(phones.isotonic(np.array([3.0, 2, 1])), [2, 2, 2])


def test_every_phone_has_a_frame():
    said = [("_", 0.1), ("t", 0.11), ("ə", 0.12), ("s", 0.13), ("t", 0.3), ("_", 0.4)]
    labels = phones.frame_labels(said, 10, 0.04)
    names = [phones.PHONES[label // 2] for label in labels]
    assert [name for name, _ in itertools.groupby(names)] == ["_", "t", "ə", "s", "t", "_"]
    # Halves: a phone of one frame has only a first one.
    assert labels[names.index("ə")] % 2 == 0
    assert list(labels[-2:] % 2) in ([0, 1], [1, 1])


def test_more_phones_than_frames_still_fill_the_frames():
    assert len(phones.frame_labels([("t", 0.01), ("ə", 0.02), ("s", 0.03)], 2, 0.04)) == 2


def test_stress_belongs_to_the_phone_after_it_and_a_short_space_to_the_one_before():
    timed = phones.timed_phones(["_", "ˈ", "A", " ", "t", ",", " ", "n", "_"], [0.1] * 9, 0.15)
    assert [phone for phone, _ in timed] == ["_", "A", "t", "_", "n", "_"]
    np.testing.assert_allclose([end for _, end in timed], [0.1, 0.4, 0.5, 0.7, 0.8, 0.9])


def aligner():
    words = {
        "fish": "fɪʃ",
        "ship": "ʃɪp",
        "that": "ðæt",
        "thin": "θɪn",
        "pat": "pæt",
        "sing": "sɪŋ",
    }
    rng = random.Random(2)
    examples = []
    for _ in range(200):
        chosen = rng.choices(list(words), k=4)
        examples.append((list("".join(words[w] for w in chosen)), " ".join(chosen)))
    return letters.LetterAligner(examples)


def test_letters_are_found_for_phones():
    places = aligner().align(list("fɪʃðætsɪŋ"), "Fish that sing.")
    assert all(a <= b for a, b in itertools.pairwise(places))
    expected = [0, 1, 2.5, 5.5, 7, 8, 10, 11, 12.5]
    assert np.abs(places - expected).max() <= 0.75


def test_letters_know_their_frames():
    places = np.array([255, 0, 0, 2, 255, 3, 255], np.uint8)
    np.testing.assert_allclose(encode.frames_of_letters(places, 5), [1.5, 2.25, 3, 5, 5])


@pytest.fixture(scope="module")
def spec() -> SpeechSpec:
    config = SpeechLMConfig(
        backbone_config=model.CONFIG.to_diff_dict() | {"model_type": "llama"},
        stream_layout=layout.stream_layout(),
        embedding={"auxiliary_skip_ids": [layout.PAD]},
        head_offsets=True,
        # Any codec of these streams.
        codec={"name_or_path": str(packaged_model() / "codec")},
        tasks=layout.tasks(),
        voices={speaker: [index] for speaker, index in layout.SPEAKER_IDS.items()},
        default_voice="heart",
        guidance={"null_prompt": layout.NULL_PROMPT, "audio_only": False},
    )
    return SpeechSpec.from_config(config, "unison-default")


def test_prompts_of_speech_are_those_of_training(spec):
    text = "Please open the door."
    ids = layout.make_tokenizer().encode(text, add_special_tokens=False).ids
    assert ids == layout.text_ids(text)
    built = PromptBuilder(spec).build(
        {"prompt": text, "prompt_token_ids": ids, "mm_processor_kwargs": {"voice": "joe"}}
    )
    prompt = np.array(built["prompt_token_ids"])
    codes = np.random.default_rng(1).integers(0, 84, (9, layout.NUM_STREAMS))
    places = np.linspace(0, len(ids) - 1, 9)
    item = layout.speech_example(codes, ids, "joe", places)
    np.testing.assert_array_equal(prompt, item.steps[: len(prompt), 0])
    # The first target is the first code, and is predicted from the prompt's last step, which looks
    # at the first letter.
    first = (item.targets != layout.IGNORE).any(1).argmax()
    assert first == len(prompt) - 1
    assert item.targets[first, 0] == codes[0, 0] + layout.slice_begin(0)
    looked = item.focus[first : first + 9].round().astype(int)
    assert [item.steps[p, 0] for p in looked[[0, -1]]] == [ids[0], ids[-1]]


def heard_prompt(spec: SpeechSpec, clip: np.ndarray, task: str) -> np.ndarray:
    """[num_prompt_tokens, num_streams] ids of the engine's prompt around a clip."""
    built: Any = PromptBuilder(spec).build(
        {
            "prompt_token_ids": [],
            "multi_modal_data": {"audio": (clip, 16000)},
            "mm_processor_kwargs": {"task": task},
        }
    )
    ids = np.array(built["prompt_token_ids"])
    return np.column_stack([ids, built["auxiliary_token_ids"][: len(ids)]])


def test_prompts_around_a_clip_are_those_of_training(spec):
    clip = 0.1 * np.random.default_rng(2).standard_normal(9000).astype(np.float32)
    codes = codec_of(spec, "cpu").encode(torch.from_numpy(clip)).numpy()
    ids = layout.text_ids("Six today.")
    transcription = layout.transcription_example(codes, ids)
    prompt = heard_prompt(spec, clip, "speech_to_text")
    np.testing.assert_array_equal(prompt, transcription.steps[: len(prompt)])
    said = transcription.targets[len(prompt) - 1 :, 0]
    assert said[said != layout.IGNORE].tolist() == [*ids, layout.END]
    continuation = layout.continuation_example(np.concatenate([codes, codes]), len(codes))
    prompt = heard_prompt(spec, clip, "speech_continuation")
    np.testing.assert_array_equal(prompt, continuation.steps[: len(prompt)])


def test_the_null_prompt_is_that_of_training(spec):
    item = layout.speech_example(np.zeros((5, layout.NUM_STREAMS), int), [], None)
    assert spec.null_prompt == tuple(item.steps[: len(layout.NULL_PROMPT), 0])


def test_targets_are_the_next_steps_ids():
    codes = np.random.default_rng(4).integers(0, 512, (20, layout.NUM_STREAMS))
    for item in (
        layout.speech_example(codes, [20, 21], "joe"),
        layout.continuation_example(codes, 7),
        layout.transcription_example(codes, [20, 21]),
    ):
        known = item.targets[:-1] != layout.IGNORE
        np.testing.assert_array_equal(item.targets[:-1][known], item.steps[1:][known])
        assert (item.targets[-1] == layout.IGNORE).all()


def test_transcription_looks_at_the_frame_of_the_letter():
    codes = np.random.default_rng(1).integers(0, 84, (6, layout.NUM_STREAMS))
    ids = layout.text_ids("cab")
    item = layout.transcription_example(codes, ids, np.array([0.0, 2, 5]))
    rows = np.flatnonzero(item.targets[:, 0] != layout.IGNORE)
    assert list(item.targets[rows, 0]) == [*ids, layout.END]
    focus = item.focus[rows]
    assert focus[-1] == layout.NOWHERE
    steps = focus[:-1].astype(int)
    np.testing.assert_array_equal(item.steps[steps, 0], codes[[0, 2, 5], 0] + layout.slice_begin(0))


def test_pauses_around_a_transcription_move_what_it_looks_at():
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 84, (9, layout.NUM_STREAMS)).astype(np.int16)
    codes[:, 0] = [0, 8, 8, 20, 20, 21, 40, 41, 1]
    places = np.array([encode.UNKNOWN, 0, 0, 1, 1, 1, 2, 2, encode.UNKNOWN], np.uint8)
    utterance = encode.Encoded("cab", "joe", codes, codes, places)
    quiet = training.transcription_example(utterance, False)
    seen = set()
    for seed in range(30):
        item = training.transcription_example(utterance, True, np.random.default_rng(seed))
        added = len(item.steps) - len(quiet.steps)
        begin, end = item.region
        heard = item.steps[begin:end, 0] - layout.slice_begin(0)
        assert end - begin == len(codes) + added
        before = int(item.focus.max() - quiet.focus.max())
        np.testing.assert_array_equal(heard[before : before + len(codes)], codes[:, 0])
        assert set(np.delete(heard, range(before, before + len(codes)))) <= {0, 1}
        looked = item.focus[item.focus != layout.NOWHERE] - before
        np.testing.assert_array_equal(looked, quiet.focus[quiet.focus != layout.NOWHERE])
        seen.add((before, added - before))
    assert (0, 0) in seen and len(seen) > 8
    assert max(before for before, _ in seen) <= 12 < max(after for _, after in seen) <= 50
    loud = encode.Encoded("cab", "joe", codes[1:8], codes[1:8], places[1:8])
    examples = [training.transcription_example(loud, True, generator) for _ in range(10)]
    assert {len(item.steps) for item in examples} == {len(quiet.steps) - 2}


def test_unknown_codes_are_pads_and_not_learned():
    codes = np.full((5, layout.NUM_STREAMS), -1)
    codes[:, 0] = [4, 5, 6, 7, 8]
    item = layout.speech_example(codes, layout.text_ids("hi"), "heart")
    assert (item.targets[:, 1:] == layout.IGNORE).all()
    assert (item.steps[:, 1:] == layout.PAD).all()
    assert (item.targets[:, 0] != layout.IGNORE).sum() == 6


def test_tokenizer_reads_and_writes_text():
    tokenizer = layout.make_tokenizer()
    text = "Don't go, Anna; it's half-past nine!"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("café “now”", add_special_tokens=False).ids == layout.text_ids(
        "cafe now"
    )
    sounds = "".join(layout.SOUNDS)
    ids = tokenizer.encode(f"the {sounds}.", add_special_tokens=False).ids
    assert ids == layout.text_ids(f"the {sounds}.")
    assert len(set(ids)) == len(sounds) + 5 and max(ids) < layout.VOCABULARY_SIZE


def test_network_is_a_llama():
    torch.manual_seed(0)
    ours = model.StreamLanguageModel().eval()
    theirs = LlamaForCausalLM(model.CONFIG).eval()
    theirs.load_state_dict(ours.backbone.state_dict())
    ids = torch.randint(0, layout.VOCABULARY_SIZE, (2, 11))
    with torch.inference_mode():
        embedded = ours.backbone.model.embed_tokens(ids)
        hidden, looked = ours.backbone.model(embedded)
        wanted = theirs.model(inputs_embeds=embedded).last_hidden_state
    torch.testing.assert_close(hidden, wanted, rtol=1e-4, atol=1e-4)
    assert sum(weights.shape[1] for weights in looked) == sum(model.HINTED.values())


def test_a_model_grows_without_changing_what_it_computes():
    torch.manual_seed(0)
    small = model.StreamLanguageModel(5)
    large = model.StreamLanguageModel(7)
    large.grow(small.state_dict())
    ids = torch.randint(0, layout.VOCABULARY_SIZE, (2, 9, layout.NUM_STREAMS))
    hidden = [m.backbone.model(m.embed(ids))[0] for m in (small, large)]
    torch.testing.assert_close(*hidden)
    assert [model.num_layers(m.state_dict()) for m in (small, large)] == [5, 7]
    # The new layers learn from the first step on.
    hidden[1].sum().backward()
    assert float(large.backbone.model.layers[6].mlp.down_proj.weight.grad.abs().max()) > 0


def test_hint_is_the_logarithm_of_the_attention_around_the_place():
    weights = torch.tensor([[0.1, 0.2, 0.7]]).expand(1, 1, 4, 3)
    weights = torch.cat([weights, torch.zeros(1, 1, 4, 1)], -1)
    focus = torch.tensor([[layout.NOWHERE, 1.0, layout.NOWHERE, layout.NOWHERE]])
    reach, region = torch.tensor([1.0]), torch.tensor([[1, 3]])
    found = model.hint([weights], focus, reach, region)
    mass = 0.2 + 0.7 * np.exp(-0.5)
    assert float(found) == pytest.approx(-np.log(mass + 1e-4), rel=1e-5)


def test_learning_rate_rises_stays_and_falls():
    factors = [training.rate_factor(step, 1000, 100) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / training.WARM_STEPS)
    assert factors[400] == factors[899] == 1
    assert factors[950] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.02)
