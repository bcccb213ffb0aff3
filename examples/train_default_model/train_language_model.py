# SPDX-License-Identifier: Apache-2.0
"""Trains the language model of the default model: speaking, transcribing and continuing speech.

    python examples/train_default_model/train_language_model.py --folder build/default_model

Goes on where an interrupted run stopped. The learning rate stays the same until `--cooldown`, so
training may go on for as long as there is time; a running mean of the weights is what is exported.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import layout
import numpy as np
import torch
from corpus import Shard, all_shards
from encode import UNKNOWN, Encoded, frames_of_letters, make_aligner, read_encoded, sketch
from layout import IGNORE, NUM_STREAMS, PAD, Example
from model import CONFIG, StreamLanguageModel, num_layers
from numpy.typing import NDArray
from pack import PackedUtterances
from phones import PAUSE, phone_index
from place import CPU, Place, add_arguments, place_of
from progress import LossLog, save_atomically, with_weights
from pronunciation import lexicon_file
from sketches import Sketches
from synthesize import HELD_OUT_SETS, VOICES
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from vllm.unison.frontend.lexicon import Lexicon

POSITIONS = 4000
"""Positions of a batch, padding included, times the scale of the place."""

LONGEST = 420
"""Steps of the longest example."""

SPEECH, TRANSCRIPTION = 0.35, 0.6
"""Shares of the tasks; the rest is continuation."""

IN_LETTERS = 0.1
"""Part of the words to be spoken that keep their letters, though the lexicon has them."""

CONDITION_DROPOUT = 0.1
"""Part of the speech examples that are not told what to say, so that guidance has a null prompt."""

OPEN_VOICE = 0.05
"""Part of the speech examples that are not told who speaks."""

HEARD = 0.6
"""Part of the transcriptions that are of the disturbed speech."""

PAUSES, LONGEST_PAUSES = 0.5, (12, 50)
"""Part of the transcriptions with pauses before and after, and how many frames these have at most;
the teachers' sentences have next to none."""

MATRIX_RATE, OTHER_RATE = 0.01, 2e-3
WARM_STEPS = 100
MEAN_DECAY = 0.998
CHECKPOINT_SECONDS = 240
VALIDATION_SECONDS, VALIDATION_STEPS = 900, 100
"""Both have passed since the last validation: on a busy machine it would take all the time."""


SKETCHED = 0.35
"""Part of the examples that are of sentences that nobody spoke."""


class Corpus(Protocol):
    """Utterances to learn from, and those that are kept from it.

    Attributes:
        lexicon: how words are said.
    """

    lexicon: Lexicon

    def draw(self, rng: np.random.Generator) -> Encoded:
        """One to learn from."""

    def look_for_more(self) -> None:
        """Add those that were made meanwhile."""

    def held_out(self, part: str) -> list[Encoded]:
        """Utterances of a set that is kept from training."""


class Utterances:
    """The speech that there is, as codes; shards without codes as sketches of their labels.

    Sketches let the model learn letters and phones while the codec is still being trained.

    Args:
        folder: of the training.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aligner = make_aligner(folder)
        self._shards: dict[str, list[Encoded]] = {}
        self._sketched: set[str] = set()
        self._sketches = self._make_sketches()
        self.lexicon = Lexicon.load(lexicon_file(folder))
        self.all: list[Encoded] = []
        self.look_for_more()

    def draw(self, rng: np.random.Generator) -> Encoded:
        """An utterance, or a sketch of what nobody said."""
        if self._sketches is not None and rng.random() < SKETCHED:
            return self._sketches.draw(rng)
        return self.all[int(rng.integers(len(self.all)))]

    def _make_sketches(self) -> Sketches | None:
        if not (self._folder / "texts" / "train.txt").exists():
            return None
        # Who says the phones is a teacher's package.
        from teachers import pronounce

        return Sketches(self._folder, self._aligner, pronounce())

    def look_for_more(self) -> None:
        """Read shards that were spoken meanwhile, and codes of those that were sketches."""
        for voice in VOICES:
            for stem in all_shards(self._folder, voice):
                name = f"{voice}/{stem.name}"
                if name not in self._shards or (name in self._sketched and self._has_codes(name)):
                    self._shards[name] = self.read(stem, name, voice)
        self.all = [utterance for shard in self._shards.values() for utterance in shard]

    def _has_codes(self, name: str) -> bool:
        return (self._folder / "codes" / f"{name}.npz").exists()

    def read(self, stem: Path, name: str, voice: str) -> list[Encoded]:
        """The utterances of a shard."""
        self._sketched.discard(name)
        if self._has_codes(name):
            return read_encoded(stem, self._folder / "codes" / f"{name}.npz", voice)
        self._sketched.add(name)
        rng = np.random.default_rng([len(self._shards), len(voice)])
        return [
            sketch(utterance, voice, self._aligner, rng) for utterance in Shard(stem).utterances
        ]

    def held_out(self, part: str) -> list[Encoded]:
        """Utterances of a set that is kept from training."""
        return [
            utterance
            for voice in HELD_OUT_SETS[part]
            for utterance in self.read(
                self._folder / "speech" / part / voice, f"{part}/{voice}", voice
            )
        ]


def respell(
    text: str, lexicon: Lexicon, rng: np.random.Generator | None = None
) -> tuple[str, Callable[[NDArray], NDArray]]:
    """A text as it is told to the model, and where in it the letters of the text have gone.

    Args:
        text: to be spoken.
        lexicon: how words are said.
        rng: lets some words keep their letters; None for none that the lexicon has.
    """
    pieces = []
    for written, said in lexicon.parts(text):
        if said is None or (rng is not None and rng.random() < IN_LETTERS):
            said = written
        pieces.append((written, said))
    before, after = (np.cumsum([0, *map(len, part)]) for part in zip(*pieces, strict=True))

    def moved(places: NDArray) -> NDArray:
        return np.maximum(0, np.interp(places + 0.5, before, after) - 0.5)

    return "".join(said for _, said in pieces), moved


def speech_example(
    utterance: Encoded,
    lexicon: Lexicon,
    rng: np.random.Generator | None = None,
    voice: bool = True,
) -> Example:
    """Text to speech of an utterance, with the place in the text of each frame.

    Args:
        utterance: to be spoken.
        lexicon, rng: see `respell`.
        voice: whether it is told who speaks.
    """
    told, moved = respell(utterance.text, lexicon, rng)
    places = np.where(utterance.places == UNKNOWN, layout.NOWHERE, moved(utterance.places))
    ids = layout.text_ids(told)
    return layout.speech_example(utterance.codes, ids, utterance.voice if voice else None, places)


def pauses(codes: NDArray[np.int16], rng: np.random.Generator) -> list[NDArray[np.int16]]:
    """Codes of the pauses before and after an utterance, of frames in which it is silent.

    Args:
        codes: [num_frames, num_codebooks] of the utterance; none of it may be silent.
        rng: decides how long they are, up to LONGEST_PAUSES frames.
    """
    silent = codes[codes[:, 0] // 2 == phone_index(PAUSE)]
    lengths = rng.integers(LONGEST_PAUSES, endpoint=True) if len(silent) else [0, 0]
    return [silent[rng.integers(max(1, len(silent)), size=length)] for length in lengths]


def transcription_example(
    utterance: Encoded, heard: bool, rng: np.random.Generator | None = None
) -> Example:
    """Transcription of an utterance or of its disturbed version.

    Args:
        utterance: to be transcribed.
        heard: whether its disturbed version.
        rng: decides of pauses around it; None for none.
    """
    ids = layout.text_ids(utterance.text)
    codes = utterance.heard if heard else utterance.codes
    frames = frames_of_letters(utterance.places, len(ids)) * len(codes) / len(utterance.codes)
    if rng is not None and rng.random() < PAUSES:
        before, after = pauses(codes, rng)
        codes = np.concatenate([before, codes, after])
        frames += len(before)
    return layout.transcription_example(codes, ids, frames)


def example(utterance: Encoded, lexicon: Lexicon, rng: np.random.Generator) -> Example:
    """An example of a random task from an utterance."""
    task = rng.random()
    speaks = utterance.voice in layout.SPEAKERS
    if task < SPEECH and speaks:
        if rng.random() < CONDITION_DROPOUT:
            return layout.speech_example(utterance.codes, [], None)
        return speech_example(utterance, lexicon, rng, rng.random() >= OPEN_VOICE)
    if task < SPEECH + TRANSCRIPTION or not speaks or (utterance.codes[:, 1] < 0).all():
        return transcription_example(utterance, rng.random() < HEARD, rng)
    count = len(utterance.codes)
    return layout.continuation_example(utterance.codes, int(rng.integers(count // 4, count - 4)))


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def collate(examples: list[Example]) -> Batch:
    """The arguments of `StreamLanguageModel.forward`; examples are padded at the end."""
    # Lengths in steps of 16 leave fewer shapes to prepare for.
    longest = -(-max(len(item.steps) for item in examples) // 16) * 16
    ids = np.full((len(examples), longest, NUM_STREAMS), PAD, np.int64)
    targets = np.full_like(ids, IGNORE)
    focus = np.full((len(examples), longest), layout.NOWHERE, np.float32)
    for row, item in enumerate(examples):
        ids[row, : len(item.steps)] = item.steps
        targets[row, : len(item.steps)] = item.targets
        focus[row, : len(item.steps)] = item.focus
    reach = np.array([item.reach for item in examples], np.float32)
    region = np.array([item.region for item in examples], np.int64)
    arrays = (ids, targets, focus, reach, region)
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def batches(data: Corpus, rng: np.random.Generator, positions: int) -> Iterator[Batch]:
    """Endless batches of about so many positions, of examples of like length."""
    while True:
        count = max(1024, positions // 6)
        pending = [example(data.draw(rng), data.lexicon, rng) for _ in range(count)]
        pending = sorted(
            (item for item in pending if len(item.steps) <= LONGEST), key=lambda e: len(e.steps)
        )
        ready: list[list[Example]] = [[]]
        for item in pending:
            if (len(ready[-1]) + 1) * len(item.steps) > positions:
                ready.append([])
            ready[-1].append(item)
        for which in rng.permutation(len(ready)):
            yield collate(ready[int(which)])


class Batches(IterableDataset):  # type: ignore[type-arg]
    """`batches`, which other processes may make; each makes its own.

    Args:
        data: utterances.
        seed: of what is random.
        positions: see `batches`.
    """

    def __init__(self, data: Corpus, seed: list[int], positions: int) -> None:
        self._data, self._seed, self._positions = data, seed, positions

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self._seed, worker.id if worker else 0])
        return batches(self._data, rng, self._positions)


def scores(sums: dict[str, torch.Tensor], prefix: str = "") -> dict[str, float]:
    """Mean losses and accuracies of the sums that the model gives."""
    loss = sums["loss"].detach() / sums["count"].clamp_min(1)
    hits = sums["hits"].float() / sums["count"].clamp_min(1)
    found = {
        "text": loss[0],
        "semantic": loss[1],
        "acoustic": loss[2:].mean(),
        "text_accuracy": hits[0],
        "semantic_accuracy": hits[1],
        "first_acoustic_accuracy": hits[2],
    }
    present = {0: "text", 1: "semantic", 2: "acoustic"}
    missing = [name for i, name in present.items() if not int(sums["count"][i])]
    return {
        prefix + name: float(value)
        for name, value in found.items()
        if not any(gone in name for gone in missing)
    }


@torch.no_grad()
def validate(model: nn.Module, data: list[Encoded], lexicon: Lexicon) -> dict[str, float]:
    """Losses and accuracies, teacher-forced, on sentences that training never sees."""
    result: dict[str, float] = {}
    device = next(model.parameters()).device
    kinds = {
        "speech": [speech_example(utterance, lexicon) for utterance in data],
        "transcription": [transcription_example(utterance, True) for utterance in data],
    }
    for kind, examples in kinds.items():
        examples.sort(key=lambda item: len(item.steps))
        total: dict[str, torch.Tensor] = {}
        hints = []
        for start in range(0, len(examples), 20):
            batch = [part.to(device) for part in collate(examples[start : start + 20])]
            with torch.autocast(device.type, torch.bfloat16):
                sums = model(*batch)
            hints.append(float(sums.pop("hint")))
            for name, value in sums.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value
        result |= scores(total, "held_out_")
        result[f"held_out_{kind}_hint"] = float(np.mean(hints))
    return result


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the table, the heads and the vectors."""
    matrices, tables, vectors = [], [], []
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "head_offsets" in name:
            vectors.append(weight)
        elif ".layers." in name:
            matrices.append(weight)
        else:
            tables.append(weight)
    groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, OTHER_RATE, betas=(0.9, 0.98), fused=True)
    muon = torch.optim.Muon(
        matrices, MATRIX_RATE, weight_decay=0.05, momentum=0.95, adjust_lr_fn="original"
    )
    return [muon, adam]


def rate_factor(step: int, steps: int, cooldown: int) -> float:
    """Factor on the learning rates: up in the first steps, down over the last `cooldown`."""
    warm = min(1.0, (step + 1) / WARM_STEPS)
    return warm * max(0.02, min(1.0, (steps - step) / max(1, cooldown)))


def time_factor(elapsed: float, seconds: float) -> float:
    """Factor on the learning rates of a run that ends after some seconds."""
    if math.isinf(seconds):
        return 1.0
    return min(1.0, max(0.02, 4 * (1 - elapsed / seconds)))


def hint_weight(step: int) -> float:
    """Weight of the hint: strong until it is followed, then weak."""
    return 0.3 if step < 2000 else 0.1


def train_language_model(
    folder: Path,
    steps: int,
    cooldown: int,
    layers: int = CONFIG.num_hidden_layers,
    data: Corpus | None = None,
    place: Place = CPU,
    seed: int = 0,
    seconds: float = math.inf,
) -> None:
    """Train, or go on where an interrupted run stopped.

    Args:
        folder: of the training; checkpoints and curves are written there.
        steps: of POSITIONS positions each, times the scale.
        cooldown: last steps, in which the learning rate falls.
        layers: of the model; a checkpoint of fewer is grown. Few to begin with are cheaper.
        data: what to learn from; default: the speech of the folder.
        place: where to compute.
        seed: of everything random.
        seconds: stop after so long; the learning rate falls in the last quarter.
    """
    torch.manual_seed(seed)
    device = torch.device(place.device)
    model = StreamLanguageModel(layers).to(device)
    optimizers = make_optimizers(model)
    mean = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    log, first = LossLog(folder / "language_model_loss"), 0
    checkpoint = folder / "language_model_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.grow(state["mean"])
        mean = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        if "optimizers" in state and num_layers(state["model"]) == layers:
            # Otherwise they begin anew, from the mean.
            model.load_state_dict(state["model"])
            for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
        first = state["step"]
        log.resume(first)
    base_rates = [[MATRIX_RATE], [OTHER_RATE, OTHER_RATE]]
    data = data or Utterances(folder)
    held_out = data.held_out("validation")
    made = Batches(data, [seed, first], POSITIONS * place.scale)
    stream = iter(DataLoader(made, batch_size=None, num_workers=place.workers))
    weights = torch.tensor([1.5, 2.0] + [1.0] * (NUM_STREAMS - 1), device=device)
    started = saved = validated = time.monotonic()
    validated_at = first
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="language model")
    for step in progress:
        elapsed = time.monotonic() - started
        factor = rate_factor(step, steps, cooldown) * time_factor(elapsed, seconds)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        batch = [part.to(device) for part in next(stream)]
        with torch.autocast(device.type, torch.bfloat16):
            sums = model(*batch)
        guided = sums.pop("hint")
        loss = (sums["loss"] * weights).sum() / (sums["count"] * weights).sum()
        (loss + hint_weight(step) * guided).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(MEAN_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                mean[name].lerp_(weight, 1 - decay)
        shown = scores(sums) | {"hint": float(guided.detach())}
        now = time.monotonic()
        over = now - started > seconds or step + 1 == steps
        due = now - validated > VALIDATION_SECONDS and step - validated_at >= VALIDATION_STEPS
        if due or over:
            with with_weights(model, mean):
                shown |= validate(model, held_out, data.lexicon)
            tqdm.write(f"{step + 1}: { ({k: round(v, 3) for k, v in shown.items()}) }")
            validated, validated_at = time.monotonic(), step
        log.add(step, shown)
        if now - saved > CHECKPOINT_SECONDS or over:
            states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": states, "mean": mean}
            save_atomically(state | {"step": step + 1}, checkpoint)
            data.look_for_more()
            log.plot(CURVES)
            saved = time.monotonic()
        progress.set_postfix(
            loss=f"{float(loss.detach()):.3f}", hint=f"{float(guided.detach()):.2f}"
        )
        if over:
            break


CURVES = ["semantic", "acoustic", "text", "held_out_semantic_accuracy", "held_out_text_accuracy"]


def main() -> None:
    """Train the language model."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--steps", type=int, default=100000)
    parser.add_argument("--cooldown", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=CONFIG.num_hidden_layers)
    parser.add_argument("--packed", type=Path, help="speech that pack.py packed")
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=math.inf, help="to train for")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    train_language_model(
        options.folder,
        options.steps,
        options.cooldown,
        options.layers,
        PackedUtterances(options.packed) if options.packed else None,
        place_of(options),
        seconds=options.seconds,
    )


if __name__ == "__main__":
    main()
