# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of loading a published checkpoint of seven billion parameters.

    python benchmarks/benchmark_loading.py --output-json benchmarks/results/loading.json

Writes a checkpoint of OpusLM 7B's sizes as ESPnet publishes it (one `model.pth` in bfloat16 and
`config.yaml`; random weights, 15 GB of disk), and loads it in a new process. Reading the file once,
from the disk and without a model, is what the time is compared with. Before both, the file's pages
are dropped from the system's cache.

Peak memory is the process's largest resident set while `LLM(folder)` is made, less what it had
before, and less the KV cache that it was told to make. `--layers` makes a smaller model.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from hardware import describe_machine  # noqa: E402
from tqdm import tqdm  # noqa: E402

NUM_SPECIAL, NUM_UNITS, NUM_CODES, NUM_TEXT, NUM_PHONES = 256, 5000, 1024, 100352, 70
NUM_STREAMS = 9
BACKBONE: dict[str, Any] = {
    "vocab_size": NUM_TEXT,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
KV_CACHE_BYTES = 1 << 28
MAX_MODEL_LEN = 256
_BLOCK = 1 << 24
_GIB = 1 << 30


def write_checkpoint(folder: Path, layers: int) -> Path:
    """Write the two files that ESPnet publishes, with what they name beside them.

    Args:
        folder: made if missing.
        layers: of the backbone.

    Returns:
        The file of weights.
    """
    import yaml
    from transformers import Olmo2Config

    from tests.support.espnet_dac import GENERATOR, write_espnet_dac
    from tests.support.opuslm import settings, write_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, backbone = folder.parent / "tokenizer", folder.parent / "backbone"
    config = Olmo2Config(**BACKBONE | {"num_hidden_layers": layers})
    config.save_pretrained(backbone)
    write_tokenizer(tokenizer)
    codes = NUM_SPECIAL + NUM_UNITS
    text = codes + (NUM_STREAMS - 1) * NUM_CODES
    phones = text + NUM_TEXT
    vocabulary = phones + NUM_PHONES
    small = settings(str(backbone), str(tokenizer))
    names = small["token_list"][:NUM_SPECIAL]
    changes = {
        "token_list": names + [f"<token_{i}>" for i in range(NUM_SPECIAL, vocabulary)],
        "token_bias": {
            "ssl": [NUM_SPECIAL, codes],
            "codec": [codes, text],
            "text_bpe": [text, phones],
            "g2p": [phones, vocabulary],
            "special_token": [0, NUM_SPECIAL],
        },
        "transformer_conf": small["transformer_conf"]
        | {"n_ctx": BACKBONE["max_position_embeddings"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(small | changes, sort_keys=False))
    write_espnet_dac(folder / "codec", GENERATOR | {"quantizer_bins": NUM_CODES})
    return _write_weights(folder / "model.pth", config, vocabulary)


def _write_weights(file: Path, config: Any, vocabulary: int) -> Path:
    """A file of random tensors, whose values are written into it without being in memory first."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    hidden = config.hidden_size
    named = {"corelm.emb.weight": (vocabulary, hidden)}
    named |= {
        "corelm.decoders." + name: tuple(weight.shape)
        for name, weight in shapes.items()
        if name.startswith("model.") and "embed_tokens" not in name
    }
    named |= {
        "corelm.lm_head.weight": (vocabulary, hidden),
        "corelm.head_emb.weight": (12, hidden),
    }
    with torch.serialization.skip_data():
        # Memory that is never touched is never taken.
        state = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in named.items()}
        torch.save(state, file)
    del state
    random = torch.Generator().manual_seed(0)
    block = torch.empty(_BLOCK, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        stored = torch.load(file, mmap=True, weights_only=True)
    for name, tensor in tqdm(stored.items(), desc="writing", unit="tensor"):
        if "norm" in name:
            tensor.fill_(1.0)
            continue
        flat = tensor.view(-1)
        for begin in range(0, len(flat), _BLOCK):
            part = flat[begin : begin + _BLOCK]
            shift = int(torch.randint(_BLOCK, (), generator=random))
            part.copy_(block.roll(shift)[: len(part)])
    os.sync()
    return file


def drop_from_cache(file: Path) -> None:
    """Let the system forget a file's pages, so that the next reader reads the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(file: Path) -> float:
    """Seconds that reading a file once takes, in pieces of 16 MiB."""
    buffer = bytearray(_BLOCK)
    started = time.perf_counter()
    with file.open("rb", buffering=0) as opened, _bar("reading", file) as progress:
        while count := opened.readinto(buffer):
            progress.update(count)
    return time.perf_counter() - started


def _bar(name: str, file: Path) -> tqdm:
    return tqdm(total=file.stat().st_size, desc=name, unit="B", unit_scale=True)


def memory(kind: str) -> int:
    """Bytes of a counter of this process in /proc, such as VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


@contextmanager
def _timed_loading(found: dict[str, float]) -> Iterator[None]:
    """Measure, within it, the seconds in which the weights are loaded, and their bytes."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    load = DefaultModelLoader.load_weights

    def timed(self: Any, model: Any, *args: Any) -> None:
        # Later the weights are packed for the processor, and are parameters no more.
        found["weights_bytes"] = sum(weight.nbytes for weight in model.parameters())
        started = time.perf_counter()
        load(self, model, *args)
        found["weights_seconds"] = time.perf_counter() - started

    with patch.object(DefaultModelLoader, "load_weights", timed):
        yield


def load(folder: Path) -> dict[str, float]:
    """Load a checkpoint in this process; seconds and bytes."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm.v1.engine.core  # noqa: F401  # its memory is not the weights'
    from vllm import LLM

    found: dict[str, float] = {"before_bytes": memory("VmRSS")}
    started = time.perf_counter()
    with _timed_loading(found):
        LLM(
            str(folder),
            enforce_eager=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=2,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
        )
    found |= {"start_seconds": time.perf_counter() - started, "peak_bytes": memory("VmHWM")}
    return found


def main() -> None:
    """Write, read and load."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoint, and leave it")
    parser.add_argument("--layers", type=int, default=BACKBONE["num_hidden_layers"])
    parser.add_argument("--load-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load_only:
        print(json.dumps(load(options.load_only)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        place = Path(temporary) if options.folder is None else options.folder
        file = place / "model" / "model.pth"
        if not file.exists():
            write_checkpoint(file.parent, options.layers)
        drop_from_cache(file)
        read = seconds_to_read(file)
        drop_from_cache(file)
        command = [sys.executable, __file__, "--load-only", str(file.parent)]
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"VLLM_CACHE_ROOT": cache}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
        found = json.loads(done.stdout.splitlines()[-1])
        size = file.stat().st_size
    peak = found["peak_bytes"] - found["before_bytes"] - KV_CACHE_BYTES
    result = {
        "machine": describe_machine(),
        "layers": options.layers,
        "file_bytes": size,
        "read_seconds": read,
        **found,
        "kv_cache_bytes": KV_CACHE_BYTES,
        "peak_over_weights": peak / found["weights_bytes"],
        "load_over_read": found["weights_seconds"] / read,
    }
    print(
        f"{size / _GIB:.2f} GiB of file: read in {read:.1f} s; weights loaded in "
        f"{found['weights_seconds']:.1f} s, engine started in {found['start_seconds']:.1f} s; "
        f"peak {peak / _GIB:.2f} GiB, {result['peak_over_weights']:.3f} times the weights"
    )
    if options.output_json:
        options.output_json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
