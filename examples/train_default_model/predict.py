# SPDX-License-Identifier: Apache-2.0
"""Writes what the language model takes the acoustic codes for: ``predicted/VOICE/00012.npz``.

    python examples/train_default_model/predict.py --folder build/default_model

A decoder that only ever saw the codec's own codes does badly on those that a model chooses. Of
each utterance the model sees the codes before and the phones, and its likeliest codes stand for the
real ones; the decoder then learns what was said there (`train_decoder.py`). Files of an earlier
model are replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import layout
import numpy as np
import torch
from corpus import all_shards
from encode import Encoded, read_encoded
from layout import NUM_STREAMS, SPEAKERS
from model import StreamLanguageModel, num_layers
from numpy.typing import NDArray
from place import CPU, Place, add_arguments, place_of
from progress import save_arrays
from pronunciation import lexicon_file
from tqdm import tqdm
from train_language_model import POSITIONS, collate, speech_example

from vllm.unison.frontend.lexicon import Lexicon


@torch.no_grad()
def predict(
    model: StreamLanguageModel, utterances: Sequence[Encoded], lexicon: Lexicon
) -> list[NDArray[np.int16]]:
    """[num_frames, NUM_STREAMS] codes of each utterance: its semantic ones, and the likeliest
    acoustic ones behind everything that was before them.

    Args:
        model: the language model.
        utterances: of voices that it speaks with.
        lexicon: how words are said.
    """
    device = next(model.parameters()).device
    found = [utterance.codes.copy() for utterance in utterances]
    examples = [speech_example(utterance, lexicon) for utterance in utterances]
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].steps))
    while order:
        longest = len(examples[order[-1]].steps)
        batch = [order.pop() for _ in range(max(1, min(len(order), POSITIONS // longest)))]
        ids, targets, *_ = (part.to(device) for part in collate([examples[i] for i in batch]))
        with torch.autocast(device.type, torch.bfloat16):
            hidden, _ = model.backbone.model(model.embed(ids))
            for stream in range(1, NUM_STREAMS):
                rows = targets[..., stream] != layout.IGNORE
                chosen = model.logits(hidden[rows], stream).argmax(-1).cpu().numpy()
                ends = np.cumsum(rows.sum(1).cpu().numpy())[:-1]
                for i, codes in zip(batch, np.split(chosen, ends), strict=True):
                    found[i][:, stream] = codes
    return found


def predict_all(folder: Path, shards: int, place: Place = CPU) -> None:
    """Predict the codes of shards that have some.

    Args:
        folder: of the training, with a language model and ``codes``.
        shards: of each voice, at most.
        place: where to compute.
    """
    weights = torch.load(folder / "language_model_checkpoint.pt")["mean"]
    model = StreamLanguageModel(num_layers(weights)).to(place.device)
    model.load_state_dict(weights)
    lexicon = Lexicon.load(lexicon_file(folder))
    stems = [(voice, stem) for voice in SPEAKERS for stem in all_shards(folder, voice)[:shards]]
    for voice, stem in tqdm(stems, desc="predicting", unit="shard"):
        utterances = read_encoded(stem, folder / "codes" / voice / f"{stem.name}.npz", voice)
        codes = predict(model, utterances, lexicon)
        file = folder / "predicted" / voice / f"{stem.name}.npz"
        save_arrays(file, codes=np.concatenate(codes))


def read_predicted(file: Path, encoded: Sequence[Encoded]) -> list[NDArray[np.int16]]:
    """What `predict_all` wrote for the utterances of a shard."""
    ends = np.cumsum([len(utterance.codes) for utterance in encoded])[:-1]
    return np.split(np.load(file)["codes"], ends)


def main() -> None:
    """Predict."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--shards", type=int, default=16, help="of each voice, at most")
    add_arguments(parser)
    options = parser.parse_args()
    predict_all(options.folder, options.shards, place_of(options))


if __name__ == "__main__":
    main()
