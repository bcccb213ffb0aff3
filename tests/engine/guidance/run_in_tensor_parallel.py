# SPDX-License-Identifier: Apache-2.0
"""Run the invariance test's requests on two ranks: `python -m ... CHECKPOINT OUTPUT.json`.

Then again with their audio streamed, which must be the audio of the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.engine.audio.streams import assert_streams_are, num_pieces, stream
from tests.engine.guidance.cases import MIXED
from tests.engine.streams.conftest import open_engine
from vllm.sampling_params import RequestOutputKind


def main(folder: str, output: str) -> None:
    """Write, per request, the tokens of stream 0, how it ended, and the codes."""
    with open_engine(Path(folder), tensor_parallel_size=2, max_num_batched_tokens=64) as llm:
        outputs = llm.generate([c.prompt for c in MIXED], [c.params for c in MIXED], use_tqdm=False)
        streams = stream(llm, MIXED, RequestOutputKind.DELTA)
        assert_streams_are(streams, outputs, RequestOutputKind.DELTA)
        assert max(num_pieces(completions[0]) for completions in streams) >= 3
    rows = []
    for request in outputs:
        completion = request.outputs[0]
        codes = None if completion.audio is None else completion.audio.codes.tolist()
        rows.append([list(completion.token_ids), completion.finish_reason, codes])
    Path(output).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
