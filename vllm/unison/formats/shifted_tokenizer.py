# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a backbone in the ids of a model whose text lies behind other tokens.

ESPnet's models put special tokens and codes before the text of the language model that they were
made from, and name its tokenizer instead of bringing it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_shifted_tokenizer(name: str, first_id: int, num_ids: int, folder: Path) -> None:
    """Write a tokenizer whose ids begin at another id.

    Args:
        name: of the tokenizer, a folder or a hub id.
        first_id: id of the tokenizer's id 0.
        num_ids: of the text in the model.
        folder: where tokenizer.json and tokenizer_config.json go.

    Raises:
        OSError: if there is no such tokenizer.
        ValueError: if its ids cannot be moved, or are more than the model has.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"the tokenizer {name!r} must have a tokenizer.json")
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = data["model"].get("type")
    if kind not in ("BPE", "WordLevel"):
        raise ValueError(f"the tokenizer {name!r} must be of type 'BPE', not {kind!r}")
    largest = max(tokenizer.get_vocab().values())
    if largest >= num_ids:
        raise ValueError(f"the tokenizer {name!r} must have ids below {num_ids}, not {largest}")
    vocabulary = {text: index + first_id for text, index in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["id"] += first_id
        # The library numbers added tokens anew that this does not hold.
        vocabulary[token["content"]] = token["id"]
    data["model"]["vocab"] = vocabulary
    # What puts tokens around a text, by their ids: a prompt says itself what is around it.
    data["post_processor"] = data["truncation"] = data["padding"] = None
    write = {
        "tokenizer.json": data,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        },
    }
    for file, values in write.items():
        (folder / file).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
