# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: emulated on the host everywhere, themselves where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from vllm.multistream.row_sums import (
    merge_lanes,
    merge_lanes_reference,
    multistream_embed,
    multistream_embed_reference,
)
from vllm.multistream.sampling import guided_multistream_sample, multistream_sample
from vllm.multistream.sampling.oracle import guided_multistream_sample_oracle

from .problems import (
    GuidedProblem,
    Problem,
    embedding_arguments,
    equal_scores_problem,
    random_guided_problem,
    random_problem,
    threshold_problem,
)

REPOSITORY = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def _emulated_kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("cuda_emulation") / "emulated_kernels.so"
    source = Path(__file__).parent / "cuda_emulation" / "emulated_kernels.cpp"
    command = [compiler, "-O2", "-ffp-contract=off", "-std=c++20", "-fPIC", "-shared", str(source)]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{REPOSITORY / 'csrc'}"]
    for folder in cpp_extension.include_paths():
        command += ["-isystem", folder]
    for folder in cpp_extension.library_paths():
        command += [f"-L{folder}"]
    subprocess.run([*command, "-ltorch_cpu", "-lc10", "-o", str(library)], check=True)
    torch.ops.load_library(str(library))


def _emulate(problem: Problem, cached: bool, threads: int = 256) -> torch.Tensor:
    out = torch.full(problem.logits.shape[:2], 0x5A5A5A5A, dtype=torch.int32)
    torch.ops.unison_emulation.guided_multistream_sample(
        **problem.arguments(),
        tokens=out,
        sources=None,
        weights=None,
        rows=None,
        slots=None,
        log_probability=None,
        cached=cached,
        threads=threads,
    )
    return out


def _check_guided(problem: GuidedProblem, sample: Any) -> None:
    tokens, log_probability = problem.results(sample)
    expected, expected_log_probability = problem.results(guided_multistream_sample_oracle)
    assert torch.equal(tokens, expected)
    assert torch.equal(log_probability.isnan(), expected_log_probability.isnan())
    assert torch.equal(log_probability.nan_to_num(), expected_log_probability.nan_to_num())


@pytest.mark.slow
@pytest.mark.usefixtures("_emulated_kernel")
class TestEmulatedKernel:
    """The kernel's source, compiled for the host."""

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_oracle(self, cached: bool, dtype: torch.dtype) -> None:
        for seed, candidates in enumerate((1, 2, 5, 37, 256, 257, 700, 1025)):
            problem = random_problem(seed, 8, 2, candidates, dtype)
            assert torch.equal(_emulate(problem, cached), problem.oracle()), candidates

    @pytest.mark.parametrize("cached", [True, False])
    def test_ties(self, cached: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        problem = random_problem(3, 20, 2, 300)
        ties = torch.randint(-3, 3, problem.logits.shape, generator=generator).float()
        problem = replace(problem, logits=ties)
        assert torch.equal(_emulate(problem, cached), problem.oracle())

    @pytest.mark.parametrize("cached", [True, False])
    def test_thresholds(self, cached: bool) -> None:
        for problem in (threshold_problem(0, 150), equal_scores_problem(4, 700)):
            assert torch.equal(_emulate(problem, cached), problem.oracle())

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_groups_of_lanes(self, cached: bool, dtype: torch.dtype) -> None:
        sample = partial(
            torch.ops.unison_emulation.guided_multistream_sample, cached=cached, threads=256
        )
        for seed, candidates in enumerate((1, 5, 37, 300, 700)):
            _check_guided(random_guided_problem(seed, 4, 3, candidates, dtype), sample)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_merge_lanes(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        for width in (1, 3, 4, 129, 300, 1025):
            values = torch.randn((7, width + 1), generator=generator).to(dtype)[:, 1:]
            sources = torch.randint(-1, 8, (4, 3), generator=generator)
            weights = torch.randn((4, 3), generator=generator)
            for out in (dtype, torch.float32):
                merged = torch.full((4, width), torch.nan, dtype=out)
                torch.ops.unison_emulation.merge_lanes(values, sources, weights, merged, 64)
                assert torch.equal(merged, merge_lanes_reference(values, sources, weights, out))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ids_dtype", [None, torch.int32, torch.int64])
    def test_multistream_embed(self, dtype: torch.dtype, ids_dtype: torch.dtype | None) -> None:
        for streams, width in ((1, 5), (4, 64), (9, 301)):
            arguments = embedding_arguments(width, streams, width, dtype, ids_dtype)
            expected = multistream_embed_reference(*arguments)
            out = torch.full_like(expected, torch.nan)
            torch.ops.unison_emulation.multistream_embed(*arguments, out, 32)
            assert torch.equal(out, expected)

    def test_phases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rule's own tests, with the emulated operators in the place of the compiled ones."""
        from tests.multistream import test_stream_step as tests

        for name in ("gather_streams", "begin_streams", "advance_streams"):
            emulated = getattr(torch.ops.unison_emulation, name)
            monkeypatch.setattr(torch.ops.unison, name, emulated)
        for seed in range(20):
            tests.check_begin(tests.published_layout(), seed)
            tests.check_advance(tests.published_layout(), seed, grouped=seed % 2 == 0)
        tests.check_gather(7, 5, torch.int64)

    def test_block_of_1024_threads(self) -> None:
        problem = random_problem(4, 4, 1, 9000, torch.bfloat16)
        assert torch.equal(_emulate(problem, cached=False, threads=1024), problem.oracle())


def _on_gpu(problem: Problem) -> dict[str, Any]:
    return {
        name: argument.cuda() if isinstance(argument, torch.Tensor) else argument
        for name, argument in problem.arguments().items()
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestKernelOnGpu:
    """The compiled kernel."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_oracle(self, dtype: torch.dtype) -> None:
        for seed, candidates in enumerate((1, 31, 257, 1024, 1025, 8192, 8193, 20000, 151936)):
            problem = random_problem(seed, 32 if candidates < 10000 else 6, 3, candidates, dtype)
            tokens = multistream_sample(**_on_gpu(problem))
            assert torch.equal(tokens.cpu(), problem.oracle()), candidates

    def test_thresholds(self) -> None:
        for problem in (threshold_problem(0, 2000, 150), equal_scores_problem(4, 2500)):
            tokens = multistream_sample(**_on_gpu(problem))
            assert torch.equal(tokens.cpu(), problem.oracle())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_groups_of_lanes(self, dtype: torch.dtype) -> None:
        def sample(**arguments: Any) -> None:
            moved = {
                name: value.cuda() if isinstance(value, torch.Tensor) else value
                for name, value in arguments.items()
            }
            guided_multistream_sample(**moved)
            for name in ("tokens", "log_probability"):
                arguments[name].copy_(moved[name])

        for seed, candidates in enumerate((1, 31, 1024, 8192, 9000)):
            _check_guided(random_guided_problem(seed, 16, 4, candidates, dtype), sample)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sums_of_rows(self, dtype: torch.dtype) -> None:
        values = torch.randn((64, 1000)).to(dtype)
        sources, weights = torch.randint(-1, 65, (40, 3)), torch.randn((40, 3))
        merged = merge_lanes(values.cuda(), sources.cuda(), weights.cuda())
        assert torch.equal(merged.cpu(), merge_lanes_reference(values, sources, weights))
        arguments = embedding_arguments(1, 9, 1000, dtype, torch.int64)
        moved = [None if argument is None else argument.cuda() for argument in arguments]
        found = multistream_embed(*moved)
        assert torch.equal(found.cpu(), multistream_embed_reference(*arguments))

    def test_graph_capture(self) -> None:
        problem = random_problem(9, 32, 9, 1024)
        arguments = _on_gpu(problem)
        out = torch.empty((32, 9), dtype=torch.int32, device="cuda")
        multistream_sample(**arguments, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            multistream_sample(**arguments, out=out)
        out.fill_(0x5A5A5A5A)
        graph.replay()
        assert torch.equal(out.cpu(), problem.oracle())

    def test_mathematics_has_the_same_bits(self) -> None:
        x = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) * 80 + 1e-6
        for function in (torch.ops.unison.deterministic_log, torch.ops.unison.deterministic_exp):
            assert torch.equal(function(x.cuda()).cpu(), function(x))
