# SPDX-License-Identifier: Apache-2.0
"""What ESPnet's own DAC makes of codes and samples with the small random codecs of the tests.

    python -m venv espnet_venv && espnet_venv/bin/pip install espnet==202506 torchaudio
    PYTHONPATH=. espnet_venv/bin/python tests/references/espnet/dac.py > FILE

FILE is tests/codecs/espnet_dac.json. It also checks that DACGenerator's own names of weights are
those that the tests write.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from espnet2.gan_codec.dac.dac import DACGenerator

from tests.support import espnet_dac as codec

NUM_FRAMES, EVERY = 40, 97
"""Frames of a clip, and which samples are written."""


def clip() -> torch.Tensor:
    """Samples of 40 frames, and a few more."""
    time = torch.arange(NUM_FRAMES * 320 + 100) / codec.SAMPLE_RATE
    return 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time) * time)


def main() -> None:
    """Print codes of a clip, and samples of these codes."""
    found: dict[str, Any] = {}
    for name, parameters in (("plain", codec.GENERATOR), ("projected", codec.PROJECTED)):
        model = DACGenerator(**parameters, sample_rate=codec.SAMPLE_RATE)
        state = {
            key.removeprefix("codec.generator."): tensor
            for key, tensor in codec.tensors(parameters).items()
            if key.startswith("codec.generator.")
        }
        names = {
            key.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): key
            for key in model.state_dict()
        }
        model.load_state_dict({names[key]: tensor for key, tensor in state.items()}, strict=True)
        model.eval()
        with torch.inference_mode():
            codes = model.encode(clip()[None, None])
            samples = model.decode(codes)[0, 0]
        found[name] = {
            "codes": codes[:, 0].T.tolist(),
            "num_samples": len(samples),
            "samples": [round(value, 6) for value in samples[::EVERY].tolist()],
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
