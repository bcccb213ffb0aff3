# SPDX-License-Identifier: Apache-2.0
"""Trains the language model of the default model: speaking, transcribing and continuing speech."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import layout
import numpy as np
import torch
from layout import IGNORE, NUM_STREAMS, PAD
from numpy.typing import NDArray
from progress import LossLog
from synthesize import Corpus
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from vllm.unison.codecs.spectral_codec import SpectralCodec

CONFIG = LlamaConfig(
    vocab_size=layout.VOCABULARY_SIZE,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=32,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=layout.END,
    # On the CPU its backward pass is several times faster than the fused one at these lengths.
    attn_implementation="eager",
)
LEARNING_RATE = 1.5e-3
POSITIONS = 3000
"""Positions of a batch, padding included."""

SPEECH, TRANSCRIPTION = 0.68, 0.22
"""Shares of the tasks; the rest is continuation."""

CONDITION_DROPOUT = 0.12
"""Part of the speech examples that are not told what to say, so that guidance has a null prompt."""

OPEN_VOICE = 0.1
"""Part of the speech examples that are not told who speaks."""


SHORT_TEXT = 4
"""Tokens of a text, about its words, up to which an utterance may be spliced to another."""

SPLICED = 0.6
"""Part of the short utterances that are."""


@dataclass(frozen=True)
class Encoded:
    """A corpus as codes.

    Attributes:
        codes: per utterance [num_frames, NUM_STREAMS] int16.
        noisy: the same of a noisy version, which transcription is trained with.
        texts: per utterance its ids.
        speakers: per utterance its voice.
    """

    codes: list[NDArray[np.int16]]
    noisy: list[NDArray[np.int16]]
    texts: list[list[int]]
    speakers: list[str]


def encode_corpus(
    corpus: Corpus, codec: SpectralCodec, tokenizer: Tokenizer, file: Path, seed: int
) -> Encoded:
    """Encode a corpus once; later calls read the file."""
    texts = [tokenizer.encode(u.text, add_special_tokens=False).ids for u in corpus.utterances]
    speakers = [u.speaker for u in corpus.utterances]
    lengths = [codec.num_frames(u.num_samples) for u in corpus.utterances]
    if not file.exists():
        clean = [np.empty((n, NUM_STREAMS), np.int16) for n in lengths]
        noisy = [np.empty((n, NUM_STREAMS), np.int16) for n in lengths]
        rng = np.random.default_rng(seed)
        # Clips of one length share a batch, so that each gets the codes that it would get alone.
        order = np.argsort(lengths, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1)
        batches = [group[i : i + 32] for group in groups for i in range(0, len(group), 32)]
        for batch in tqdm(batches, desc=f"encoding {file.stem}"):
            samples = np.zeros((len(batch), codec.num_samples(lengths[batch[0]])), np.float32)
            for row, index in enumerate(batch):
                samples[row, : corpus.utterances[index].num_samples] = corpus.samples(int(index))
            level = 10 ** rng.uniform(-0.6, 0.2, (len(batch), 1))
            noise = rng.standard_normal(samples.shape)
            noise *= np.sqrt((samples**2).mean(1, keepdims=True))
            noise *= 10 ** (-rng.uniform(12, 45, (len(batch), 1)) / 20)
            heard = (level * (samples + noise)).astype(np.float32)
            for part, version in ((clean, samples), (noisy, heard)):
                for index, codes in zip(batch, _encode(codec, version), strict=True):
                    part[index][:] = codes
        np.savez(file, clean=np.concatenate(clean), noisy=np.concatenate(noisy))
    stored = np.load(file)
    ends = np.cumsum(lengths)[:-1]
    return Encoded(
        np.split(stored["clean"], ends), np.split(stored["noisy"], ends), texts, speakers
    )


@torch.inference_mode()
def _encode(codec: SpectralCodec, samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """[batch, whole frames] samples to [batch, frames, NUM_STREAMS] codes."""
    latents = codec.model.encoder(torch.from_numpy(samples))
    return codec.model.quantizer.encode(latents).numpy().astype(np.int16)


Example = tuple[NDArray[np.int32], NDArray[np.int32]]


class Splicer:
    """Makes longer utterances of two short ones of a voice.

    There are millions of pairs, so the order of words cannot be learnt by heart, which is what a
    model soon does with tens of thousands of utterances.

    Args:
        data: utterances.
    """

    def __init__(self, data: Encoded) -> None:
        self._data = data
        self._short: dict[str, list[int]] = {}
        for index, (speaker, text) in enumerate(zip(data.speakers, data.texts, strict=True)):
            if len(text) <= SHORT_TEXT:
                self._short.setdefault(speaker, []).append(index)

    def splice(self, index: int, rng: np.random.Generator) -> Encoded:
        """One utterance: this one, or if it is short perhaps this and another one."""
        data = self._data
        text, codes, noisy = data.texts[index], data.codes[index], data.noisy[index]
        speaker = data.speakers[index]
        if len(text) <= SHORT_TEXT and rng.random() < SPLICED:
            partners = self._short[speaker]
            other = partners[int(rng.integers(len(partners)))]
            # Silence in the middle would teach the model to pause anywhere.
            left = len(codes) - _silent_frames(codes[::-1])
            right = _silent_frames(data.codes[other])
            text = text + data.texts[other]
            codes = np.concatenate([codes[:left], data.codes[other][right:]])
            noisy = np.concatenate([noisy[:left], data.noisy[other][right:]])
        return Encoded([codes], [noisy], [text], [speaker])


def _silent_frames(codes: NDArray[np.int16]) -> int:
    """Frames at the start whose semantic code is silence."""
    voiced = np.flatnonzero(codes[:, 0] >= 2)
    return int(voiced[0]) if len(voiced) else 0


def example(data: Encoded, index: int, rng: np.random.Generator) -> Example:
    """An example of a random task from an utterance."""
    codes, text = data.codes[index], data.texts[index]
    task = rng.random()
    if task < SPEECH:
        if rng.random() < CONDITION_DROPOUT:
            return layout.speech_example(codes, [], None)
        speaker = None if rng.random() < OPEN_VOICE else data.speakers[index]
        return layout.speech_example(codes, text, speaker)
    if task < SPEECH + TRANSCRIPTION:
        heard = data.noisy[index] if rng.random() < 0.5 else codes
        return layout.transcription_example(heard, text)
    return layout.continuation_example(codes, int(rng.integers(len(codes) // 4, len(codes) - 4)))


def collate(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, steps, NUM_STREAMS] ids and targets of examples, padded at the end."""
    longest = max(len(steps) for steps, _ in examples)
    ids = np.full((len(examples), longest, NUM_STREAMS), PAD, np.int64)
    targets = np.full_like(ids, IGNORE)
    for row, (steps, wanted) in enumerate(examples):
        ids[row, : len(steps)] = steps
        targets[row, : len(steps)] = wanted
    return torch.from_numpy(ids), torch.from_numpy(targets)


def batches(data: Encoded, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of about POSITIONS positions, of examples of like length."""
    rng = np.random.default_rng(seed)
    splicer = Splicer(data)
    while True:
        order = rng.permutation(len(data.texts))
        for start in range(0, len(order), 512):
            chosen = [splicer.splice(int(i), rng) for i in order[start : start + 512]]
            pending = [example(utterance, 0, rng) for utterance in chosen]
            pending.sort(key=lambda pair: len(pair[0]))
            ready: list[list[Example]] = [[]]
            for pair in pending:
                if (len(ready[-1]) + 1) * len(pair[0]) > POSITIONS:
                    ready.append([])
                ready[-1].append(pair)
            for which in rng.permutation(len(ready)):
                yield collate(ready[int(which)])


class StreamLanguageModel(nn.Module):
    """The backbone with the embeddings and heads of all streams, as the engine computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = LlamaForCausalLM(CONFIG)
        self.head_offsets = nn.Parameter(torch.zeros(NUM_STREAMS, CONFIG.hidden_size))
        nn.init.normal_(self.backbone.model.embed_tokens.weight, std=0.05)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sums of losses and hits.

        Args:
            ids: [batch, steps, NUM_STREAMS].
            targets: of the same shape; IGNORE where there is none.

        Returns:
            [1 + NUM_STREAMS] tensors `loss`, `hits` and `count`: text first, then each stream.
        """
        table = self.backbone.model.embed_tokens.weight
        embedded = functional.embedding(ids[..., 0], table)
        rest = functional.embedding(ids[..., 1:], table)
        embedded = embedded + (rest * (ids[..., 1:] != PAD)[..., None]).sum(-2)
        hidden = self.backbone.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        head = self.backbone.lm_head.weight
        sums: dict[str, list[torch.Tensor]] = {"loss": [], "hits": [], "count": []}
        for stream in range(-1, NUM_STREAMS):
            wanted = targets[..., max(stream, 0)]
            if stream <= 0:
                # END belongs to the phase that it ends.
                in_text = (targets[..., 0] >= layout.FIRST_TEXT) & (
                    targets[..., 0] < layout.FIRST_CODE
                )
                text_rows = in_text.any(1, keepdim=True)
                wanted = wanted.masked_fill(text_rows if stream == 0 else ~text_rows, IGNORE)
            begin = layout.FIRST_TEXT if stream < 0 else layout.slice_begin(stream)
            stop = layout.FIRST_CODE if stream < 0 else layout.slice_begin(stream + 1)
            rows = wanted != IGNORE
            states = hidden[rows] + self.head_offsets[max(stream, 0)]
            logits = functional.linear(states, head[begin:stop]).float()
            local = wanted[rows] - begin
            if stream <= 0:
                ended = functional.linear(states, head[layout.END : layout.END + 1]).float()
                logits = torch.cat([logits, ended], -1)
                local = torch.where(wanted[rows] == layout.END, stop - begin, local)
            sums["loss"].append(functional.cross_entropy(logits, local, reduction="sum"))
            sums["hits"].append((logits.argmax(-1) == local).sum().detach())
            sums["count"].append(rows.sum())
        return {name: torch.stack(values) for name, values in sums.items()}


def _weights() -> torch.Tensor:
    """Weight of each loss: text and the semantic stream lead the others."""
    return torch.tensor([2.0, 2.0] + [1.0] * (NUM_STREAMS - 1))


def _scores(sums: dict[str, torch.Tensor], prefix: str) -> dict[str, float]:
    loss = sums["loss"].detach() / sums["count"].clamp_min(1)
    hits = sums["hits"].float() / sums["count"].clamp_min(1)
    return {
        f"{prefix}text": float(loss[0]),
        f"{prefix}semantic": float(loss[1]),
        f"{prefix}acoustic": float(loss[2:].mean()),
        f"{prefix}text_accuracy": float(hits[0]),
        f"{prefix}semantic_accuracy": float(hits[1]),
        f"{prefix}first_acoustic_accuracy": float(hits[2]),
    }


@torch.no_grad()
def validate(model: nn.Module, data: Encoded) -> dict[str, float]:
    """Losses and accuracies, teacher-forced, on sentences that training never sees."""
    rng = np.random.default_rng(0)
    total: dict[str, torch.Tensor] = {}
    for start in range(0, len(data.texts), 25):
        indices = range(start, min(start + 25, len(data.texts)))
        ids, targets = collate([example(data, i, rng) for i in indices])
        with torch.autocast("cpu", torch.bfloat16):
            for name, value in model(ids, targets).items():
                total[name] = total.get(name, torch.zeros(())) + value
    return _scores(total, "held_out_")


def train_language_model(
    training: Encoded, held_out: Encoded, folder: Path, steps: int, seed: int = 0
) -> StreamLanguageModel:
    """Train, or go on where an interrupted run stopped.

    Args:
        training, held_out: encoded corpora.
        folder: where checkpoints and the loss curve go.
        steps: of POSITIONS positions each.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    model = StreamLanguageModel()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    log, first = LossLog(folder / "language_model_loss"), 0
    checkpoint = folder / "language_model_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log.resume(first)
    model.backbone.model.compile(dynamic=True)
    stream = batches(training, seed + first)
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="language model")
    weights = _weights()
    for step in progress:
        warm = min(1.0, (step + 1) / 300)
        rate = LEARNING_RATE * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            sums = model(ids, targets)
        loss = (sums["loss"] * weights).sum() / (sums["count"] * weights).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shown = _scores(sums, "")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            shown |= validate(model, held_out)
            tqdm.write(f"{step + 1}: {shown}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, checkpoint)
        log.add(step, shown)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            log.plot(
                [
                    "semantic",
                    "acoustic",
                    "text",
                    "held_out_semantic_accuracy",
                    "held_out_text_accuracy",
                ]
            )
        progress.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return model
