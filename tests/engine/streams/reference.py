# SPDX-License-Identifier: Apache-2.0
"""Multi-stream generation a second time, as slowly and plainly as it can be written.

The backbone is transformers' own, in float32; everything else is a Python loop over steps that
knows the checkpoint's files only. It shares no code with the engine, but for the definition of
seeded sampling (`sample_streams_reference`), which is a contract in itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from vllm.unison.ops.sample import SampleArguments
from vllm.unison.ops.sample_reference import sample_streams_reference
from vllm.unison.testing.random_checkpoint import beside_engines

FREE = None
"""A cell of the prompt's suffix that generation may fill."""


@dataclass(frozen=True)
class Settings:
    """Sampling settings of one request.

    Attributes:
        max_tokens: most tokens of stream 0 before the delayed streams catch up.
        max_model_len: most positions of a request.
        seed: None is greedy.
        text: (temperature, top_k, top_p) of text phases; top_k 0 is off.
        streams: the same per stream, for audio phases.
    """

    max_tokens: int
    max_model_len: int
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None
    text: tuple[float, int, float] = (0.0, 0, 1.0)
    streams: tuple[tuple[float, int, float], ...] = ()


@dataclass
class Prompt:
    """A prompt in steps.

    Attributes:
        steps: per step the ids of all streams.
        suffix: per step after the prompt, the ids of streams 1.., or FREE.
    """

    steps: list[list[int]]
    suffix: list[list[int | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Guidance:
    """Lanes whose logits are merged: weight * conditional + sum of weight * lane.

    Attributes:
        weight: of the conditional lane.
        lanes: weight and prompt of each guidance lane, all streams per step; None is as many pads
            as the conditional lane has steps before guidance.
        first, last: guided frames, both included; last None is to the end.
        audio_only: whether only audio is guided, frames being counted from each segment's start;
            else they are counted from the first generated step.
    """

    weight: float
    lanes: tuple[tuple[float, list[list[int]] | None], ...]
    first: int = 0
    last: int | None = None
    audio_only: bool = False


@dataclass
class Generated:
    """What a request generates.

    Attributes:
        steps: per generated step the ids of all streams.
        codes: per generated frame the codec's codes, or None if no audio segment was finished.
        finish_reason: "stop" or "length".
        num_segments: audio segments that were finished.
        margins: per step the smallest distance between the best and the second-best candidate of a
            greedy choice; infinite where nothing was chosen.
    """

    steps: list[list[int]]
    codes: list[list[int]] | None
    finish_reason: str
    num_segments: int
    margins: list[float]

    @property
    def primary(self) -> list[int]:
        """Ids of stream 0."""
        return [step[0] for step in self.steps]


@dataclass
class _Flush:
    """Stream 0 has ended at `end`, its first position without a frame.

    The other streams follow, `extra` steps more, and the `closing` tokens of stream 0; afterwards
    `forced` tokens follow, then phase `to`.
    """

    end: int
    forced: list[int]
    to: str
    extra: int = 0
    closing: list[int] = field(default_factory=list)


class Reference:
    """A checkpoint, and how it generates.

    Args:
        folder: a SpeechLM checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        backbone = dict(config["backbone_config"])
        kind = backbone.pop("model_type")
        own_config = CONFIG_MAPPING[kind](**backbone)
        with beside_engines(own_config):
            model = AutoModelForCausalLM.from_config(own_config, dtype=torch.float32)
        self._model = model.eval()
        weights = load_file(folder / "model.safetensors")
        own = {
            name.removeprefix("backbone."): weight.float()
            for name, weight in weights.items()
            if name.startswith("backbone.")
        }
        missing, unexpected = self._model.load_state_dict(own, strict=False)
        assert not unexpected, unexpected
        assert set(missing) <= {"lm_head.weight"}, missing
        self._model.tie_weights()
        self._embedding = self._model.get_input_embeddings().weight
        self._head = self._model.get_output_embeddings().weight
        self._offsets = weights.get("head_offsets")

        layout = config["stream_layout"]
        self.delays: list[int] = layout["delays"]
        self.num_streams = len(self.delays)
        self.slices: list[list[int]] = layout["slices"]
        pads = layout["pad_token_ids"]
        self.pads: list[int] = [pads] * self.num_streams if isinstance(pads, int) else pads
        self.fills: dict[str, dict[str, Any]] = layout.get("fills", {})
        self.outside: str | int = layout.get("outside_codebook", "fail")
        self.text_slice: list[int] = layout["text_slice"]
        self.phases: dict[str, dict[str, Any]] = {p["name"]: p for p in layout["phases"]}
        self.first_phase: str = layout["phases"][0]["name"]
        self.segment_scope = layout["delay_scope"] == "segment"
        self.tasks: dict[str, list[int | str]] = config["tasks"]
        self.codebook_streams: list[int] = layout.get("codebook_streams") or list(
            range(self.num_streams)
        )
        embedding = config["embedding"]
        self._skipped = [set(embedding.get("primary_skip_ids", ()))]
        self._skipped += [set(embedding.get("auxiliary_skip_ids", ()))] * (self.num_streams - 1)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self._codec: Any = None
        if config["codec"] is not None:
            self._codec = AutoModel.from_pretrained(folder / config["codec"]["name_or_path"]).eval()

    # Prompts

    def prompt_of_task(
        self, task: str, text: str | None = None, clip: torch.Tensor | None = None
    ) -> Prompt:
        """The prompt of a task: frames in their order, then delayed.

        Args:
            task: the task's name.
            text: what stands for "text".
            clip: [num_samples] at the codec's own rate, a whole number of frames long.
        """
        frames: list[list[int]] = []
        for part in self.tasks[task]:
            if part == "text":
                assert text is not None
                ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                frames += [[token, *self.pads[1:]] for token in ids]
            elif part == "audio":
                assert clip is not None
                spoken = self.frames_of_clip(clip)
                frames += self._whole_segment(spoken) if self.segment_scope else spoken
            else:
                assert isinstance(part, int)
                frames.append([part, *self.pads[1:]])
        return self.delayed(frames)

    def _whole_segment(self, frames: list[list[int]]) -> list[list[int]]:
        """The steps of a stretch of audio that is over, with what fills them before and after."""
        steps = []
        for step in range(len(frames) + max(self.delays)):
            row = []
            for stream, delay in enumerate(self.delays):
                if delay <= step < delay + len(frames):
                    row.append(frames[step - delay][stream])
                    continue
                is_end = step == delay + len(frames) and "end" in self.fills
                place = "lead_in" if step < delay else "end" if is_end else "tail"
                ids = self.fills.get(place, {"token_ids": self.pads})["token_ids"]
                row.append(ids if isinstance(ids, int) else ids[stream])
            steps.append(row)
        return steps

    def frames_of_clip(self, clip: torch.Tensor) -> list[list[int]]:
        """Frames of ids that transformers' own codec gives for a clip."""
        with torch.inference_mode():
            codes = self._codec.encode(clip[None, None]).audio_codes[0, : self.num_streams].T
        return [
            [code + self.slices[stream][0] for stream, code in enumerate(frame)]
            for frame in codes.tolist()
        ]

    def delayed(self, frames: Sequence[Sequence[int]]) -> Prompt:
        """Frame f of stream k goes to step f + delays[k]; what is left over is the suffix.

        Where delays start anew in every segment, these are steps already.
        """
        count = len(frames)
        if self.segment_scope:
            return Prompt([list(frame) for frame in frames], [])

        def cell(step: int, stream: int) -> int | None:
            frame = step - self.delays[stream]
            if frame < 0:
                return self.pads[stream]
            return frames[frame][stream] if frame < count else FREE

        steps = [[cell(step, k) for k in range(self.num_streams)] for step in range(count)]
        suffix = [
            [cell(step, k) for k in range(1, self.num_streams)]
            for step in range(count, count + max(self.delays))
        ]
        return Prompt(steps, suffix)  # type: ignore[arg-type]

    # Generation

    @torch.inference_mode()
    def generate(
        self, prompt: Prompt, settings: Settings, guidance: Guidance | None = None
    ) -> Generated:
        """Generate until the request ends."""
        history = [list(step) for step in prompt.steps]
        start_of_output = len(history)
        limit = min(
            start_of_output + settings.max_tokens, settings.max_model_len - max(self.delays)
        )
        phase, segment_start = self._start(history)
        forced: list[int] = []
        flush: _Flush | None = None
        segments: list[tuple[int, int]] = []
        margins: list[float] = []
        cache: Any = None
        unread = history
        while True:
            position = len(history)
            # Not __call__, which the engine replaces where it wraps transformers' class (OLMo-2).
            output = self._model.model.forward(
                inputs_embeds=self._embed(unread), past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            hidden = output.last_hidden_state[0, -1]
            is_audio = not forced and self.phases[phase]["kind"] == "audio"
            rule = self.phases[phase].get("end_rule", {}) if phase in self.phases else {}
            first_step = max(segment_start, start_of_output) + rule.get("first_step", 0)
            counts = position >= first_step
            early = flush is None and not counts and rule.get("forbids_earlier", True)
            barred = flush is not None or early
            may_end = not settings.ignore_eos and position >= start_of_output + settings.min_tokens
            margins.append(float("inf"))

            lanes: list[tuple[float, torch.Tensor]] = []
            stretch = segment_start if guidance and guidance.audio_only else start_of_output
            if guidance is not None and (is_audio or not guidance.audio_only):
                lanes = self._lanes(guidance, history, stretch, hidden)

            def choose(
                stream: int,
                lanes: list[tuple[float, torch.Tensor]] = lanes,
                alone: torch.Tensor = hidden,
                position: int = position,
                stretch: int = stretch,
            ) -> int:
                merged = [(1.0, alone)]
                if guidance is not None and lanes:
                    frame = position - stretch - (self.delays[stream] if is_audio else 0)  # noqa: B023
                    if guidance.first <= frame and (
                        guidance.last is None or frame <= guidance.last
                    ):
                        merged = lanes
                token, margin = self._choose(
                    merged,
                    stream,
                    phase,  # noqa: B023
                    may_end or flush is not None,  # noqa: B023
                    position,
                    settings,
                    barred,  # noqa: B023
                    early,  # noqa: B023
                )
                margins[-1] = min(margins[-1], margin)
                return token

            if forced:
                step = [forced[0]]
            elif flush is not None and position >= flush.end + max(self.delays) + flush.extra:
                step = [flush.closing[0]]
            else:
                fill = self._fill(0, position, segment_start, flush) if is_audio else FREE
                step = [choose(0) if fill is FREE else fill]
            suffix = prompt.suffix[position - start_of_output : position - start_of_output + 1]
            for stream in range(1, self.num_streams):
                if suffix and suffix[0][stream - 1] is not FREE:
                    step.append(suffix[0][stream - 1])  # type: ignore[arg-type]
                elif is_audio:
                    fill = self._fill(stream, position, segment_start, flush)
                    step.append(choose(stream) if fill is FREE else fill)
                else:
                    step.append(self.pads[stream])
            history.append(step)
            unread = [step]

            spent = position + 1 >= limit
            entered = False
            if flush is None:
                if forced:
                    forced.pop(0)
                    entered = not forced
                else:
                    ends = {t["token"]: t for t in self.phases[phase]["transitions"]}
                    transition = ends.get(step[0])
                    extra, closing = rule.get("extra_steps", 0), list(rule.get("closing", ()))
                    if transition is not None and counts:
                        rest = list(transition.get("forced", ()))
                        flush = _Flush(position, rest, transition["to"], extra, closing)
                        if rule.get("kind") == "after_tail":
                            flush.end -= max(self.delays)
                        if not is_audio:
                            forced, phase, flush = rest, transition["to"], None
                            entered = not forced
                    elif spent and is_audio:
                        flush = _Flush(position + 1, [], "limit", extra, closing)
            elif position >= flush.end + max(self.delays) + flush.extra:
                flush.closing.pop(0)
            if (
                flush is not None
                and not flush.closing
                and position + 1 >= flush.end + max(self.delays) + flush.extra
            ):
                segments.append((segment_start, flush.end))
                forced, phase, flush = flush.forced, flush.to, None
                entered = not forced
            if phase == "end" and not forced and flush is None:
                return self._result(history, start_of_output, segments, "stop", margins)
            if spent and flush is None:
                return self._result(history, start_of_output, segments, "length", margins)
            if entered:
                segment_start = position + 1

    def _fill(
        self, stream: int, position: int, segment_start: int, flush: _Flush | None
    ) -> int | None:
        """What a stream must emit in audio; FREE if that is for the sampler."""
        delay, by_limit = self.delays[stream], False
        if position < segment_start + delay:
            place = "lead_in"
        elif flush is None or position < flush.end + delay:
            return FREE
        else:
            place = "end" if position == flush.end + delay and "end" in self.fills else "tail"
            by_limit = flush.to == "limit"
        if place not in self.fills:
            return self.pads[stream]
        if self._is_sampled(place, stream) and not by_limit:
            return FREE
        ids: int | list[int] = self.fills[place]["token_ids"]
        return ids if isinstance(ids, int) else ids[stream]

    def _is_sampled(self, place: str, stream: int) -> bool:
        sampled: bool | list[bool] = self.fills[place].get("sampled", False)
        return sampled if isinstance(sampled, bool) else sampled[stream]

    def _sampled_fills(self, stream: int) -> list[int]:
        found = set()
        for place, value in self.fills.items():
            if self._is_sampled(place, stream):
                ids = value["token_ids"]
                found.add(ids if isinstance(ids, int) else ids[stream])
        return sorted(found)

    def _lanes(
        self,
        guidance: Guidance,
        history: list[list[int]],
        stretch: int,
        conditional: torch.Tensor,
    ) -> list[tuple[float, torch.Tensor]]:
        """Weight and hidden state of every lane: its prompt, then all that was emitted since."""
        lanes = [(guidance.weight, conditional)]
        for weight, prompt in guidance.lanes:
            steps = [list(self.pads)] * stretch if prompt is None else prompt
            output = self._model.model.forward(
                inputs_embeds=self._embed([*steps, *history[stretch:]])
            )
            lanes.append((weight, output.last_hidden_state[0, -1]))
        return lanes

    def _start(self, history: list[list[int]]) -> tuple[str, int]:
        """Phase and segment start: those of the last begin token."""
        begins = {t: p["name"] for p in self.phases.values() for t in p["begin_tokens"]}
        for position in range(len(history) - 1, -1, -1):
            if history[position][0] in begins:
                return begins[history[position][0]], position + 1
        return self.first_phase, len(history)

    def _embed(self, steps: list[list[int]]) -> torch.Tensor:
        rows = []
        for step in steps:
            row = torch.zeros(self._embedding.shape[1])
            for token, skipped in zip(step, self._skipped, strict=True):
                if token not in skipped:
                    row = row + self._embedding[token]
            rows.append(row)
        return torch.stack(rows)[None]

    def _choose(
        self,
        lanes: list[tuple[float, torch.Tensor]],
        stream: int,
        phase: str,
        may_end: bool,
        position: int,
        settings: Settings,
        barred: bool,
        early: bool,
    ) -> tuple[int, float]:
        """The token of a stream, and by how much it won if the choice was greedy."""
        kind = self.phases[phase]["kind"]
        offset = 0 if self._offsets is None else self._offsets[stream]
        logits = torch.stack([w * (self._head @ (hidden + offset)) for w, hidden in lanes]).sum(0)
        moves = sorted(
            {
                t["token"]
                for p in self.phases.values()
                if p["kind"] == kind
                for t in p["transitions"]
            }
        )
        ended = {t["token"]: self._ends(t) for t in self.phases[phase]["transitions"]}
        if kind == "text":
            own = range(*self.text_slice)
            everything = [*own, *moves]
            candidates = list(range(min(everything), max(everything) + 1))
        else:
            own = range(*self.slices[stream])
            candidates = [*own, *(moves if stream == 0 else ())]
        fills = self._sampled_fills(stream) if kind == "audio" else []
        candidates += [token for token in fills if token not in candidates]

        def is_allowed(token: int) -> bool:
            if token in own:
                return True
            if stream == 0 and token in ended and (early or (ended[token] and not may_end)):
                return False
            return token in fills or (stream == 0 and token in ended and not barred)

        allowed = [is_allowed(token) for token in candidates]
        scores = logits[candidates].masked_fill(~torch.tensor(allowed), -torch.inf)
        temperature, top_k, top_p = settings.text if kind == "text" else settings.streams[stream]
        if settings.seed is None or temperature == 0:
            best = scores.topk(min(2, len(candidates))).values
            margin = float(best[0] - best[-1]) if len(best) > 1 else float("inf")
            return candidates[int(scores.argmax())], margin
        token = torch.empty((1, 1), dtype=torch.int32)
        sample_streams_reference(
            logits[candidates][None, None],
            SampleArguments(
                candidate_ids=torch.tensor([candidates], dtype=torch.int32),
                masks=torch.tensor(allowed)[None, None],
                mask_index=torch.zeros(1, dtype=torch.int32),
                temperature=torch.tensor([[temperature]], dtype=torch.float32),
                top_k=torch.tensor([[top_k]], dtype=torch.int32),
                top_p=torch.tensor([[top_p]], dtype=torch.float32),
                seed=torch.tensor([settings.seed]),
                position=torch.tensor([position]),
                first_stream=stream,
                forced=torch.full((1, 1), -1, dtype=torch.int32),
                tokens=token,
            ),
        )
        return int(token), float("inf")

    @staticmethod
    def _ends(transition: dict[str, Any]) -> bool:
        return transition["to"] == "end"

    def _result(
        self,
        history: list[list[int]],
        start_of_output: int,
        segments: list[tuple[int, int]],
        finish_reason: str,
        margins: list[float],
    ) -> Generated:
        codes = []
        for start, end in segments:
            for frame in range(max(start, start_of_output), end):
                row = []
                for stream in self.codebook_streams:
                    token = history[frame + self.delays[stream]][stream]
                    begin, stop = self.slices[stream]
                    if not begin <= token < stop and not isinstance(self.outside, int):
                        assert self.outside == "drop"
                        break
                    row.append(token - begin if begin <= token < stop else int(self.outside))
                else:
                    codes.append(row)
        return Generated(
            history[start_of_output:],
            codes if segments else None,
            finish_reason,
            len(segments),
            margins,
        )
