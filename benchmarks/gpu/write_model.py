# SPDX-License-Identifier: Apache-2.0
"""Write the random model of the other benchmarks to a folder, once for several of them.

python benchmarks/gpu/write_model.py FOLDER --hidden-size 2048 --num-layers 24
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workload import HEAD_SIZE, STREAMS, prepare_environment, whole_number, write_random_model


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden-size", type=whole_number(HEAD_SIZE, HEAD_SIZE), required=True)
    parser.add_argument("--num-layers", type=whole_number(1), required=True)
    parser.add_argument("--streams", type=whole_number(1), default=STREAMS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepare_environment()
    write_random_model(options.folder, options)
    size = sum(file.stat().st_size for file in options.folder.rglob("*.safetensors"))
    print(f"{options.folder}: {size / 1e6:.0f} MB of weights, the codec's among them")


if __name__ == "__main__":
    main()
