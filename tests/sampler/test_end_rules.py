# SPDX-License-Identifier: Apache-2.0
"""What the step's operators emit of audio is what `next_column` says, replayed or not."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.random_layouts import layouts
from vllm import SamplingParams
from vllm.unison.model.end_rules import (
    next_column,
    num_whole_frames,
    prompt_columns,
    speech_lm_pattern,
)
from vllm.unison.model.layout import PhaseKind, StreamLayout
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.phases import NO_TOKEN, Finish, PhaseTable, StateKind, replay
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.sampler.phase_machine import PhaseMachine
from vllm.unison.sampler.slot_table import SlotTable

MAX_MODEL_LEN = 64
BEGIN = 0


def candidates(heads: Heads, mask_index: int) -> list[list[int]]:
    """Per stream what may be sampled."""
    return [
        group.candidate_ids[row, heads.audio_masks(group)[mask_index, row]].tolist()
        for group in heads.groups
        for row in range(group.num_streams)
    ]


@settings(max_examples=300)
@given(
    layouts(kinds=(PhaseKind.AUDIO,), max_phases=1, max_streams=4, any_stream=True),
    st.integers(0, 3),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_every_column_is_the_patterns(
    layout: StreamLayout, num_given: int, max_tokens: int, seed: int
) -> None:
    source = random.Random(seed)
    phase = dataclasses.replace(layout.phases[0], begin_tokens=(BEGIN,))
    layout = dataclasses.replace(layout, phases=(phase,))
    pattern = speech_lm_pattern(SpeechSpec(layout), 0)
    table, heads = PhaseTable(layout), Heads(layout, PhaseTable(layout))
    end_ids = {transition.token for transition in phase.transitions}
    given_frames = np.array(
        [[source.randrange(*pair) for pair in layout.slices] for _ in range(num_given)], np.int32
    ).reshape(num_given, layout.num_streams)
    columns = prompt_columns(pattern, given_frames)
    prompt = [BEGIN, *columns[:, 0].tolist()]
    # Beside the prompt, and past it: what is left of its frames.
    rest = np.full((layout.max_delay, layout.num_streams), NO_TOKEN, np.int32)
    for stream, delay in enumerate(layout.delays):
        left = given_frames[max(num_given - delay, 0) :, stream]
        rest[delay - len(left) : delay, stream] = left
    beside = [np.array([layout.pad_token_ids]), columns, rest]
    auxiliary = np.concatenate(beside).astype(np.int32)[:, 1:]
    params = SamplingParams(max_tokens=max_tokens, seed=1)
    limit, frame_limit = len(prompt) + max_tokens, num_given + max_tokens

    slots = SlotTable(layout, table, 2, MAX_MODEL_LEN, torch.device("cpu"))
    machine = PhaseMachine(layout, table, slots)
    output: list[list[int]] = []
    is_held = False
    while True:
        found = next_column(pattern, columns, limit=frame_limit, prompt=given_frames)
        ids = [row[0] for row in output]
        now = replay(table, prompt, np.array(output).reshape(-1, layout.num_streams), limit)
        if found.ended:
            break
        assert now.segments == ()
        assert table.kind[now.state] in (StateKind.AUDIO, StateKind.FLUSH)
        if not is_held or source.random() < 0.2:
            slots.release_except(set())
            known = np.full((len(output), layout.num_streams - 1), NO_TOKEN, np.int32)
            known[:] = np.array(output, np.int32).reshape(len(output), layout.num_streams)[:, 1:]
            streams = np.concatenate([auxiliary[: len(prompt)], known, auxiliary[len(prompt) :]])
            streams = streams[: max(len(auxiliary), len(prompt) + len(output))]
            streams[len(prompt) + len(output) :] = auxiliary[len(prompt) + len(output) :]
            slots.admit("request", prompt, ids, streams, params)
            slots.invalidate_rows()
            slots.set_rows(["request"])
            is_held = True
        position = torch.tensor([len(prompt) + len(output)])
        choices = machine.constrain(position)
        assert choices.tokens[0].tolist() == found.forced.tolist()
        allowed = candidates(heads, int(choices.mask_index[0]))
        row = choices.tokens[0].tolist()
        for stream, token in enumerate(list(row)):
            if token != NO_TOKEN:
                continue
            fills = set(layout.more_than_codes(stream))
            if phase.end_rule.any_stream:
                end = layout.tail.token_ids[stream]
                assert (end in allowed[stream]) == bool(found.may_end[stream])
                if source.random() < 0.2:
                    row[stream] = end
                    continue
            elif stream == 0:
                in_audio = table.kind[now.state] == StateKind.AUDIO
                counts = len(columns) >= num_given + phase.end_rule.first_step
                may_end = in_audio and (counts or not phase.end_rule.forbids_earlier)
                ends = end_ids & set(allowed[stream])
                # An end that fills the tail too is a candidate there, and nowhere else too early.
                fills -= end_ids if in_audio and not may_end else set()
                assert ends == (end_ids if may_end else end_ids & fills)
                assert bool(ends) or not found.may_end[0]
            assert {*range(*layout.slices[stream])} <= set(allowed[stream])
            assert fills <= set(allowed[stream])
            row[stream] = source.choice(allowed[stream])
        step = machine.commit(position, torch.tensor([False]), torch.tensor([row]).int(), None)
        output.append(row)
        columns = np.concatenate([columns, np.array([row], np.int32)])
        after = replay(table, prompt, np.array(output), limit)
        assert step.outcome[1:, 0].tolist() == [after.state, after.segment_start]
    (segment,) = now.segments
    frames = num_whole_frames(pattern, columns, limit=frame_limit, prompt=given_frames)
    assert (segment.start, segment.num_frames) == (1, frames)
    assert int(step.finish[0]) != Finish.ERROR
    assert len(output) <= max_tokens + layout.num_flush_steps
