# SPDX-License-Identifier: Apache-2.0
"""Writes the small model beside this file, and what ESPnet's own classes make of a clip with it.

    python tests/references/xeus/make_reference.py

The model has XEUS's structure, settings and names, with few channels and two blocks; its weights
are random. A k-means model of scikit-learn's is fitted to its states. The script makes an
environment of its own, with ESPnet in it, in a folder for temporary files and runs itself there.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch==2.13.0",
    "numpy==2.4.6",
    "scikit-learn==1.9.1",
    "joblib==1.6.0",
    "typeguard==2.13.3",
    "humanfriendly==10.0",
    "pyyaml==6.0.4",
    "packaging",
    "setuptools",
)
ESPNET = "espnet==202511"
"""Installed without what it depends on: the classes that are used here need the packages above."""

HERE = Path(__file__).resolve().parent
SEED = 5
NUM_CLUSTERS = 40

SETTINGS: dict[str, Any] = {
    "token_list": ["30", "4", "<unk>", "<sos/eos>"],
    "init": "xavier_uniform",
    "input_size": None,
    "loss": [{"name": "hubert", "conf": {"num_classes": 8, "final_dim": 8}}],
    "util": [{"name": "mask", "conf": {}}],
    "frontend": "wav2vec_cnn",
    "frontend_conf": {
        "norm_mode": "layer_norm",
        "conv_mode": "standard",
        "bias": True,
        "normalize_audio": True,
        "normalize_output": False,
        "fs": "16k",
        # The published settings leave out these, whose default has 512 channels.
        "shapes": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2],
    },
    "specaug": None,
    "specaug_conf": {},
    "normalize": None,
    "normalize_conf": {},
    "preencoder": "linear",
    "preencoder_conf": {"output_size": 32},
    "encoder": "e_branchformer",
    "encoder_conf": {
        "output_size": 32,
        "attention_heads": 4,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "conv",
        "rel_pos_type": "latest",
        "cgmlp_linear_units": 64,
        "cgmlp_conv_kernel": 31,
        "use_linear_after_conv": False,
        "gate_activation": "identity",
        "num_blocks": 2,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": None,
        "layer_drop_rate": 0.0,
        "linear_units": 32,
        "positionwise_layer_type": "linear",
        "macaron_ffn": True,
        "use_ffn": True,
        "merge_conv_kernel": 31,
    },
    "model": "espnet",
    "model_conf": {},
    "version": "202412",
}
"""Those of the published config.yaml that say what the model is, in smaller numbers."""


def main() -> None:
    """Make an environment and run `write` in it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        for packages in (PACKAGES, ("--no-deps", ESPNET)):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        subprocess.run([python, __file__], check=True, env={**os.environ, "IN_REFERENCE": "1"})


def write() -> None:
    """Write the model's folder, the clip and what ESPnet makes of it."""
    import joblib
    import numpy as np
    import torch
    import yaml
    from sklearn.cluster import MiniBatchKMeans

    # Sums in one order on every machine.
    torch.set_num_threads(1)
    model = _model()
    generator = np.random.default_rng(SEED)
    clip, *others = (_clip(generator, num_samples) for num_samples in (10000, *[64000] * 4))
    states = _states(model, clip)
    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(SETTINGS, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    torch.save(model.state_dict(), folder / "xeus_checkpoint_new.pth")
    kmeans = MiniBatchKMeans(NUM_CLUSTERS, batch_size=512, n_init=4, random_state=SEED)
    kmeans.fit(np.concatenate([states, *(_states(model, other) for other in others)]))
    joblib.dump(kmeans, folder / "km_opus_lm.mdl")
    distances = np.sort(kmeans.transform(states), axis=1)
    assert (distances[:, 1] - distances[:, 0]).min() > 1e-3, "rounding decides a unit"
    np.savez(
        HERE / "expected.npz",
        samples=clip,
        states=states,
        units=kmeans.predict(states),
        centers=kmeans.cluster_centers_,
    )


def _clip(generator: Any, num_samples: int) -> Any:
    """int16 samples of noise whose color and level change, so that its frames differ."""
    import numpy as np

    noise = generator.normal(size=num_samples)
    time = np.arange(num_samples) / 16000
    tone = np.sin(2 * np.pi * (200 + 900 * time) * time)
    level = 0.2 + 0.2 * np.sin(2 * np.pi * 3 * time)
    return np.round(2**13 * level * (tone + 0.5 * np.cumsum(noise) / 20 + 0.3 * noise)).astype("i2")


def _model() -> Any:
    """ESPnet's model, built from the settings as ESPnet's task builds it, with random weights."""
    import torch
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.frontend.cnn import CNNFrontend
    from espnet2.asr.preencoder.linear import LinearProjection
    from espnet2.ssl.espnet_model import ESPnetSSLModel
    from espnet2.ssl.loss.hubert import HuBERTLoss
    from espnet2.ssl.utils.mask import Masking

    torch.manual_seed(SEED)
    frontend = CNNFrontend(**SETTINGS["frontend_conf"])
    preencoder = LinearProjection(frontend.output_size(), **SETTINGS["preencoder_conf"])
    encoder = EBranchformerEncoder(preencoder.output_size(), **SETTINGS["encoder_conf"])
    loss = HuBERTLoss(encoder.output_size(), **SETTINGS["loss"][0]["conf"])
    model = ESPnetSSLModel(
        frontend=frontend,
        specaug=None,
        normalize=None,
        preencoder=preencoder,
        encoder=encoder,
        losses=[loss],
        util_attributes=set(loss.util_attributes),
        required_inputs=set(loss.required_inputs),
        util_modules=torch.nn.ModuleDict({"mask": Masking(encoder.output_size())}),
        token_list=SETTINGS["token_list"],
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # No weight is left at 0 or 1, where a tensor in the wrong place would not be noticed.
            if name.endswith("original0"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    return model.eval()


def _states(model: Any, clip: Any) -> Any:
    """float32 [num_frames, width] states of a clip, as ESPnet's tokenizer of speech takes them."""
    import torch

    # Otherwise frames at random would be masked, as in training.
    model.util_attributes.discard("mask")
    samples = torch.from_numpy(clip / 2**15).float()[None]
    with torch.inference_mode():
        outputs = model.encode(samples, torch.tensor([samples.shape[1]]))["encoder_output"]
    assert len(outputs) == SETTINGS["encoder_conf"]["num_blocks"]
    return outputs[-1][0].numpy()


if __name__ == "__main__":
    if os.environ.get("IN_REFERENCE"):
        write()
    else:
        main()
