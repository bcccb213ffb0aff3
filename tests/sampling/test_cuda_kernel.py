# SPDX-License-Identifier: Apache-2.0
"""The CUDA sampler: its logic emulated on the host everywhere, itself where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from vllm.multistream.sampling import multistream_sample

from .problems import (
    Problem,
    equal_scores_problem,
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
    library = tmp_path_factory.mktemp("cuda_emulation") / "emulated_sample.so"
    source = Path(__file__).parent / "cuda_emulation" / "emulated_sample.cpp"
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
    torch.ops.unison_emulation.multistream_sample(
        **problem.arguments(), tokens=out, cached=cached, threads=threads
    )
    return out


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
