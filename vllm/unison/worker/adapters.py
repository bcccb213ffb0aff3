# SPDX-License-Identifier: Apache-2.0
"""What upstream's model runners call in each step; see v1_runner and v2_runner."""

from __future__ import annotations

from typing import Any, Protocol


class RunnerAdapter(Protocol):
    """What a model runner calls in each step of the scheduler's."""

    def begin_step(self, scheduler_output: Any) -> None:
        """The runner has a step's `scheduler_output`."""
        ...

    def end_step(self, output: Any) -> Any:
        """The runner's output, completed."""
        ...


class V1Adapter(RunnerAdapter, Protocol):
    """What the V1 runner calls; its batch holds the step's rows when `begin_step` is called."""

    def prepare_inputs(self) -> None:
        """The positions of the step's tokens are known, and the model's forward is next."""
        ...


class NoAdapter:
    """An adapter that does nothing, for runners that no worker has loaded a model into."""

    def begin_step(self, scheduler_output: Any) -> None:
        """Nothing to note."""

    def prepare_inputs(self) -> None:
        """Nothing to prepare."""

    def end_step(self, output: Any) -> Any:
        """The output as it is."""
        return output


def make_adapter(runner: Any, is_v2: bool) -> RunnerAdapter:
    """The adapter of a runner, V2 or V1, whose model is loaded."""
    # Importing the one for V2 imports that runner's parts.
    if is_v2:
        from vllm.unison.worker.v2_runner import make_v2_adapter

        return make_v2_adapter(runner)
    from vllm.unison.worker.v1_runner import make_v1_adapter

    return make_v1_adapter(runner)
