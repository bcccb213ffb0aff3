# SPDX-License-Identifier: Apache-2.0
"""From speech to codes: the stages of the training, on a few clips of noise."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.default_model.training_modules import training_modules
from vllm.unison.codecs.spectral_codec import SpectralCodec
from vllm.unison.frontend.lexicon import Lexicon

corpus, codec, decoder, discriminator, encode, layout, pitch, place, pronunciation = (
    training_modules(
        "corpus",
        "train_codec",
        "refine_decoder",
        "discriminator",
        "encode",
        "layout",
        "pitch",
        "place",
        "pronunciation",
    )
)
model, predict, voiced, training = training_modules(
    "model", "predict", "train_decoder", "train_language_model"
)

PHONES = [("_", 0.1), ("k", 0.3), ("æ", 0.5), ("t", 0.7), ("_", 0.9), ("s", 1.1), ("_", 1.2)]


def write_shard(stem: Path, seed: int) -> None:
    """Three utterances of noise, the last one shorter."""
    rng = np.random.default_rng(seed)
    clips = [(3000 * rng.standard_normal(size)).astype("<i2") for size in (19200, 19200, 16000)]
    lines = [asdict(corpus.Utterance("Cat, s.", len(clip), PHONES)) for clip in clips]
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".int16").write_bytes(b"".join(clip.tobytes() for clip in clips))
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    for number, voice in enumerate(("heart", "joe", "many")):
        write_shard(folder / "speech" / voice / "00000", number)
    for part in ("validation", "evaluation"):
        for voice in ("heart", "joe"):
            write_shard(folder / "speech" / part / voice, 7)
    Lexicon({"cat": layout.SOUNDS[0]}).save(pronunciation.lexicon_file(folder))
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The folder with a codec of two steps, the second one of a run that went on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "BATCH", 2)
        codec.train_codec(folder, 100, seconds=1e-9)
        assert torch.load(folder / "codec_checkpoint.pt")["step"] == 1
        codec.train_codec(folder, 2, place.Place(workers=1))
        assert torch.load(folder / "codec_checkpoint.pt")["step"] == 2
    return folder


def test_sketches_become_codes_without_a_restart(trained):
    data = training.Utterances(trained)
    assert len(data.all) == 9
    assert all((item.codes[:, 1:] == -1).all() for item in data.all)
    encode.encode(trained)
    data.look_for_more()
    assert len(data.all) == 9
    for item in data.all:
        assert item.codes.min() >= 0 and item.codes.max() < 512
        assert len(item.places) == len(item.codes) in (25, 30)
        assert abs(len(item.heard) / len(item.codes) - 1) < 0.2
    assert len(data.held_out("validation")) == 6
    # Speech that comes later is added, as a sketch.
    write_shard(trained / "speech" / "joe" / "00001", 5)
    data.look_for_more()
    assert [int((item.codes[:, 1:] == -1).all()) for item in data.all].count(1) == 3


def test_codes_do_not_depend_on_what_was_encoded_before(trained):
    encode.encode(trained)
    file = trained / "codes" / "many" / "00000.npz"
    first = dict(np.load(file))
    file.unlink()
    encode.encode(trained, place.Place(workers=2))
    again = dict(np.load(file))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_a_decoder_is_refined_and_the_codes_stay(trained, monkeypatch):
    monkeypatch.setattr(decoder, "BATCH", 2)
    monkeypatch.setattr(decoder, "ALONE_STEPS", 1)
    assert decoder.refined(trained) == trained / "codec"
    decoder.refine_decoder(trained, 100, seconds=1e-9)
    assert torch.load(trained / "decoder_checkpoint.pt")["step"] == 1
    decoder.refine_decoder(trained, 2)
    assert torch.load(trained / "decoder_checkpoint.pt")["step"] == 2
    rows = [json.loads(line) for line in (trained / "decoder_loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert "feature" not in rows[0] and rows[1]["feature"] > 0 and rows[1]["adversarial"] > 0
    assert decoder.refined(trained) == trained / "refined_codec"
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (trained / "codec", trained / "refined_codec")
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}


def test_a_decoder_learns_to_filter_a_source_and_the_codes_stay(trained, monkeypatch):
    monkeypatch.setattr(voiced, "BATCH", 2)
    monkeypatch.setattr(voiced, "FRAMES", 20)
    monkeypatch.setattr(voiced, "PITCH_STEPS", 3)
    encode.encode(trained)
    pitch.find_pitch(trained, shards=1)
    assert voiced.voiced(trained) == trained / "codec"
    voiced.train_decoder(trained, 100, seconds=1e-9)
    voiced.train_decoder(trained, 2, place.Place(workers=1))
    assert torch.load(trained / "voiced_decoder_checkpoint.pt")["step"] == 2
    lines = (trained / "voiced_decoder_loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert voiced.voiced(trained) == trained / "voiced_codec"
    made = SpectralCodec.from_pretrained(str(trained / "voiced_codec"))
    assert made.model.config.source_filter is not None
    samples = torch.randn(16000)
    codes = SpectralCodec.from_pretrained(str(trained / "codec")).encode(samples)
    assert torch.equal(made.encode(samples), codes)
    assert made.decode(codes).isfinite().all()
    # One that filters a source is refined like another.
    monkeypatch.setattr(decoder, "BATCH", 2)
    for left in ("decoder_checkpoint.pt", "decoder_loss.jsonl"):
        (trained / left).unlink(missing_ok=True)
    decoder.refine_decoder(trained, 1)
    refined = SpectralCodec.from_pretrained(str(trained / "refined_codec"))
    assert refined.model.config == made.model.config
    shutil.rmtree(trained / "voiced_codec")


def test_a_decoder_learns_from_what_the_language_model_would_say(trained, monkeypatch):
    monkeypatch.setattr(voiced, "FRAMES", 20)
    encode.encode(trained)
    pitch.find_pitch(trained, shards=1)
    assert [len(known) for known in voiced.read_known(trained).values()] == [3, 3, 3]
    torch.manual_seed(3)
    network = model.StreamLanguageModel(5)
    torch.save({"mean": network.state_dict()}, trained / "language_model_checkpoint.pt")
    predict.predict_all(trained, 1)
    known = voiced.read_known(trained)
    assert [len(known[voice]) for voice in ("heart", "joe", "many")] == [6, 6, 3]
    lexicon = Lexicon.load(pronunciation.lexicon_file(trained))
    stem = trained / "speech" / "joe" / "00000"
    for index, item in enumerate(
        encode.read_encoded(stem, trained / "codes" / "joe" / "00000.npz", "joe")
    ):
        real, told = known["joe"][2 * index : 2 * index + 2]
        np.testing.assert_array_equal(real[2], item.codes)
        assert real[0] is told[0] and real[1] == told[1] == index
        np.testing.assert_array_equal(told[2][:, 0], item.codes[:, 0])
        # One utterance by itself, and one code after the other.
        example = training.speech_example(item, lexicon)
        ids = torch.from_numpy(example.steps)[None].long()
        first = int((example.targets[:, 0] != layout.IGNORE).argmax())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden, _ = network.backbone.model(network.embed(ids))
            for frame, codes in enumerate(told[2]):
                for stream in range(1, layout.NUM_STREAMS):
                    # A stream runs behind by its number.
                    state = hidden[0, first + frame + stream]
                    chosen = int(codes[stream])
                    logits = network.logits(state, stream)
                    assert logits[chosen] >= logits.max() - 0.03
    shutil.rmtree(trained / "predicted")


def test_parts_of_utterances_are_frames_samples_and_pitches_of_one_time(trained, monkeypatch):
    monkeypatch.setattr(voiced, "FRAMES", 20)
    encode.encode(trained)
    pitch.find_pitch(trained, shards=1)
    samples, (codes, hertz, heard) = next(iter(voiced.Parts(voiced.read_known(trained), [3], 4)))
    assert codes.shape == (4, 20, 8) and samples.shape == (4, 20 * 640)
    assert hertz.shape == heard.shape == (4, 80)
    known = [
        (item, shard.samples(i))
        for voice in ("heart", "joe", "many")
        for shard in [corpus.Shard(trained / "speech" / voice / "00000")]
        for i, item in enumerate(
            encode.read_encoded(
                trained / "speech" / voice / "00000", trained / "codes" / voice / "00000.npz", voice
            )
        )
    ]
    for row in range(4):
        found = [
            (item, whole, start)
            for item, whole in known
            for start in range(len(item.codes) - 19)
            if np.array_equal(item.codes[start : start + 20], codes[row])
        ]
        assert any(
            np.array_equal(samples[row][: len(piece)], piece)
            for _, whole, start in found
            for piece in [whole[start * 640 : (start + 20) * 640]]
        )


@pytest.mark.parametrize("hertz", [71.0, 118.0, 240.0, 410.0])
def test_the_pitch_of_a_voice_is_found(hertz):
    """Pulses of a gliding pitch through a resonance, in noise, with silence around."""
    rng = np.random.default_rng(int(hertz))
    course = hertz * 2 ** (0.2 * np.linspace(-1, 1, 16000))
    phase = np.cumsum(course / 16000)
    pulses = (np.diff(np.floor(phase), prepend=0) > 0).astype(float)
    times = np.arange(400) / 16000
    voice = np.convolve(pulses, np.exp(-times * 400) * np.cos(2 * np.pi * 900 * times))[:16000]
    samples = np.concatenate([np.zeros(8000), 0.2 * voice, np.zeros(8000)])
    samples += 0.002 * rng.standard_normal(len(samples))
    found, heard = pitch.track_pitch(samples.astype(np.float32), 16000, 160)
    assert len(found) == len(heard) == 200
    inside = slice(56, 144)
    expected = course[(np.arange(200)[inside] + 1) * 160 - 8000]
    assert heard[inside].mean() > 0.95 and heard[:45].mean() < 0.1
    assert np.median(np.abs(np.log2(found[inside] / expected))) < 0.01
    assert (np.abs(np.log2(found[inside] / expected)) < 0.05).mean() > 0.95


def test_real_speech_is_told_from_decoded():
    judge = discriminator.Discriminator()
    real, decoded = torch.randn(2, 4000), torch.randn(2, 4000, requires_grad=True)
    heard, other = judge(real), judge(decoded)
    assert discriminator.feature_distance(heard, heard) == 0
    assert discriminator.feature_distance(heard, other) > 0
    loss = discriminator.adversarial_loss(other) + discriminator.feature_distance(heard, other)
    loss.backward()
    assert decoded.grad is not None and (decoded.grad != 0).any(1).all()
    verdicts = [[torch.ones(2, 1, 3, 4)], [torch.ones(2, 1, 5, 6)]]
    denials = [[torch.zeros(2, 1, 3, 4)], [torch.zeros(2, 1, 5, 6)]]
    assert discriminator.discriminator_loss(verdicts, denials) == 0
    assert discriminator.discriminator_loss(denials, verdicts) == 2
    assert discriminator.adversarial_loss(verdicts) == 0
    assert discriminator.adversarial_loss(denials) == 1
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    tones = 0.3 * torch.sin(torch.arange(4000) * torch.linspace(0.05, 0.2, 4)[:, None])
    noise = 0.1 * torch.randn(4, 4000)
    losses = []
    for _ in range(12):
        loss = discriminator.discriminator_loss(judge(tones), judge(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_long_batch_is_the_size_that_was_asked_for(folder):
    batch = next(iter(codec.ClipBatches(folder, [0], 5)))
    assert [len(part) for part in batch] == [5, 5, 5]
    assert batch[0].shape[1] == 25 * 640 and batch[0].dtype == torch.float32


def test_a_place_says_what_it_takes():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        place.Place(scale=0)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        place.Place(workers=-1)
