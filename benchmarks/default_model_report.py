# SPDX-License-Identifier: Apache-2.0
"""What `evaluate_default_model.py` measured: targets, tables and plots, for the page of benchmarks,
the model card and the default model's page alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import NOT_MEASURED, Outcome, Report, Target, percent, table

Values = Mapping[str, float]


def points(share: float) -> str:
    """A difference of percentages."""
    return f"{100 * share:.1f} points"


def best_row(report: Report) -> Mapping[str, Any]:
    """Speech at the scale with the fewest word errors."""
    row: Mapping[str, Any] = min(report["speech"], key=lambda row: row["word_error_rate"])
    return row


def _at_best(report: Report, value: float | None) -> Values:
    scale = f"scale {best_row(report)['guidance_scale']:g}"
    return {} if value is None else {scale: value}


def _speech_errors(report: Report) -> Values:
    best = best_row(report)["word_error_rate"]
    return _at_best(report, best - report["originals"]["word_error_rate"])


def _codec_errors(report: Report) -> Values:
    return {"": report["codec"]["word_error_rate"] - report["originals"]["word_error_rate"]}


def _gain(report: Report) -> Values:
    alone = [row for row in report["speech"] if row["guidance_scale"] == 1]
    best = best_row(report)["word_error_rate"]
    return _at_best(report, alone[0]["word_error_rate"] - best) if alone else {}


TARGETS = (
    Target("word errors after the codec above the originals'", 0.02, True, _codec_errors, points),
    Target(
        "word errors of speech at the best scale above the originals'",
        0.08,
        True,
        _speech_errors,
        points,
    ),
    Target(
        "utterances that do not stop, or stop more than 25 % early or late",
        0.01,
        True,
        lambda report: _at_best(report, best_row(report)["wrong"]),
        percent,
    ),
    Target(
        "DistillMOS of speech",
        3.6,
        False,
        lambda report: _at_best(report, best_row(report)["distillmos"]),
        "{:.2f}".format,
    ),
    Target(
        "speaker similarity to the chosen voice",
        0.85,
        False,
        lambda report: _at_best(report, best_row(report)["speaker_similarity"]),
        "{:.2f}".format,
    ),
    Target(
        "word errors of recognition, known voices",
        0.12,
        True,
        lambda report: {"": report["recognition"]["known_voices"]},
        percent,
    ),
    Target(
        "word errors of recognition, voices never heard",
        0.35,
        True,
        lambda report: report["recognition"]["strangers"],
        percent,
    ),
    Target(
        "word errors that guidance saves",
        0.001,
        False,
        _gain,
        points,
    ),
    Target(
        "word errors of speech that the model hears again",
        0.15,
        True,
        lambda report: _at_best(report, report["round_trip"]["word_error_rate"]),
        percent,
    ),
)
"""Of issue 17."""


def target_table(report: Report) -> str:
    """Every target with its outcome."""
    rows = []
    for target in TARGETS:
        outcome = Outcome(target, target.values(report))
        rows.append((target.text, target.bound_text(), outcome.worst, outcome.verdict))
    return table(["<", "target", "measured", "<"], rows)


def missed(report: Report) -> list[str]:
    """Targets that are missed or not measured."""
    outcomes = [Outcome(target, target.values(report)) for target in TARGETS]
    return [outcome.target.text for outcome in outcomes if outcome.verdict != "met"]


def _score(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _scores(name: str, of: Mapping[str, Any]) -> list[object]:
    return [
        name,
        percent(of["word_error_rate"]),
        _score(of["distillmos"]),
        _score(of["dnsmos"]),
        _score(of["speaker_similarity"]),
    ]


def score_table(report: Report) -> str:
    """Scores of originals, codec, flite, and speech over guidance scales."""
    heads = ["<", "word errors", "DistillMOS", "DNSMOS", "similarity of voice"]
    heads += ["length / original's", "early", "late", "endless"]
    none = ["", "", "", ""]
    rows = [
        [*_scores("the teachers' originals", report["originals"]), *none],
        [*_scores("after the codec", report["codec"]), *none],
    ]
    for row in report["speech"]:
        ends = [f"{row['duration_ratio']:.2f}"]
        ends += [percent(row[name]) for name in ("early", "late", "endless")]
        rows.append([*_scores(f"speech, scale {row['guidance_scale']:g}", row), *ends])
    if "flite" in report:
        rows.append([*_scores("flite, for comparison", report["flite"]), *none])
    return table(heads, rows)


def recognition_table(report: Report) -> str:
    """Word errors of what the model hears."""
    recognition, trip = report["recognition"], report["round_trip"]
    rows = [("originals in known voices", percent(recognition["known_voices"]))]
    rows += [
        (f"{voice}, a voice never heard", percent(errors))
        for voice, errors in recognition["strangers"].items()
    ]
    if not recognition["strangers"]:
        rows.append(("a voice never heard", NOT_MEASURED))
    again = f"its own speech, scale {trip['guidance_scale']:g}, in a batch that also speaks"
    rows.append((again, percent(trip["word_error_rate"])))
    return table(["<what it hears", "word errors"], rows)


def voice_table(report: Report) -> str:
    """Word errors by voice."""
    sets = {
        "the teachers' originals": report["originals"],
        "after the codec": report["codec"],
        f"speech, scale {best_row(report)['guidance_scale']:g}": best_row(report),
    }
    voices = sorted(report["originals"]["word_error_rate_by_voice"])
    rows = [
        [name, *(percent(of["word_error_rate_by_voice"][voice]) for voice in voices)]
        for name, of in sets.items()
    ]
    return table(["<", *(f"`{voice}`" for voice in voices)], rows)


def body(report: Report, cuda: Report | None) -> str:
    """The section on the page of benchmarks."""
    return "\n\n".join(
        [
            f"{report['utterances']} sentences. Word errors are Whisper's (tiny.en).",
            score_table(report),
            recognition_table(report),
            "![Scores over the guidance scale](images/default_model_guidance.png)",
        ]
    )


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_guidance(report: Report, file: Path) -> None:
    """Word errors, DistillMOS and likeness of voice over the guidance scale.

    The originals' and the codec's values are lines.
    """
    pyplot = _pyplot()
    panels = {
        "word_error_rate": ("word errors, % (Whisper)", 100.0),
        "distillmos": ("DistillMOS", 1.0),
        "speaker_similarity": ("similarity of voice", 1.0),
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4))
    scales = [row["guidance_scale"] for row in report["speech"]]
    for axis, (name, (label, factor)) in zip(axes, panels.items(), strict=True):
        values = [row[name] for row in report["speech"]]
        known = [(x, factor * y) for x, y in zip(scales, values, strict=True) if y is not None]
        axis.plot([x for x, _ in known], [y for _, y in known], "o-", label="speech")
        for part, style in (("originals", ":"), ("codec", "--"), ("flite", "-.")):
            level = report[part][name] if part in report else None
            # flite is compared with nobody's voice.
            if level is not None and (part, name) != ("flite", "speaker_similarity"):
                axis.axhline(factor * level, linestyle=style, color="grey", label=part)
        axis.set_xlabel("guidance scale")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def plot_spectrograms(
    file: Path, title: str, clips: Mapping[str, NDArray[np.float32]], sample_rate: int
) -> None:
    """Log-magnitude spectrograms of clips, one above the other, on one time axis."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(clips), 1, figsize=(8, 1.8 * len(clips)), sharex=True, squeeze=False
    )
    for axis, (name, samples) in zip(axes[:, 0], clips.items(), strict=True):
        axis.specgram(
            samples + 1e-5, NFFT=512, Fs=sample_rate, noverlap=384, cmap="magma", vmin=-120
        )
        axis.set_ylabel(f"{name}\nHz")
    axes[0, 0].set_title(title)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(file, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def plot_learning(evaluations: Sequence[Report], file: Path) -> None:
    """Word errors over the training's steps, of evaluations that say their step.

    Args:
        evaluations: of one training.
        file: PNG.
    """
    pyplot = _pyplot()
    known = sorted(
        (one for one in evaluations if one["model"]["step"] is not None),
        key=lambda one: int(one["model"]["step"]),
    )
    steps = [one["model"]["step"] for one in known]
    curves = {
        "speech, best scale (Whisper)": [best_row(one)["word_error_rate"] for one in known],
        "its own speech (the model)": [one["round_trip"]["word_error_rate"] for one in known],
        "known voices (the model)": [one["recognition"]["known_voices"] for one in known],
        "originals (Whisper)": [one["originals"]["word_error_rate"] for one in known],
    }
    figure, axis = pyplot.subplots(figsize=(6, 3.6))
    for label, values in curves.items():
        axis.plot(steps, [100 * value for value in values], "o-", label=label)
    axis.set_xlabel("steps of training")
    axis.set_ylabel("word errors, %")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
