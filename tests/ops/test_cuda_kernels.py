# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: emulated on the host everywhere, themselves where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from vllm.unison.ops.cfg_merge import cfg_merge, cfg_merge_reference
from vllm.unison.ops.embed import embed_streams, embed_streams_reference
from vllm.unison.ops.sample import SampleArguments, sample_streams
from vllm.unison.ops.sample_reference import sample_streams_reference

from .problems import (
    POISON,
    Problem,
    embedding_arguments,
    equal_scores_problem,
    random_group_problem,
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


def _emulated_sample(logits: torch.Tensor, arguments: SampleArguments) -> None:
    values = (getattr(arguments, field.name) for field in fields(arguments))
    torch.ops.unison_emulation.sample_streams(logits, *values)


def _emulate(problem: Problem, cached: bool, threads: int = 256) -> torch.Tensor:
    torch.ops.unison_emulation.set_launch(threads, cached)
    return problem.tokens_of(_emulated_sample)


@pytest.mark.slow
@pytest.mark.usefixtures("_emulated_kernel")
class TestEmulatedKernel:
    """The kernel's source, compiled for the host."""

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_reference(self, cached: bool, dtype: torch.dtype) -> None:
        for seed, candidates in enumerate((1, 2, 5, 37, 256, 257, 700, 1025)):
            problem = random_problem(seed, 8, 2, candidates, dtype)
            assert torch.equal(_emulate(problem, cached), problem.reference()), candidates

    @pytest.mark.parametrize("cached", [True, False])
    def test_ties(self, cached: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        problem = random_problem(3, 20, 2, 300)
        ties = torch.randint(-3, 3, problem.logits.shape, generator=generator).float()
        problem = replace(problem, logits=ties)
        assert torch.equal(_emulate(problem, cached), problem.reference())

    @pytest.mark.parametrize("cached", [True, False])
    def test_thresholds(self, cached: bool) -> None:
        for problem in (threshold_problem(0, 150), equal_scores_problem(4, 700)):
            assert torch.equal(_emulate(problem, cached), problem.reference())

    @pytest.mark.parametrize("cached", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_groups(self, cached: bool, dtype: torch.dtype) -> None:
        torch.ops.unison_emulation.set_launch(256, cached)
        for seed, candidates in enumerate((1, 5, 37, 300, 700)):
            problem = random_group_problem(seed, 4, 3, candidates, dtype)
            expected = problem.tokens_of(sample_streams_reference)
            assert torch.equal(problem.tokens_of(_emulated_sample), expected), candidates

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_cfg_merge(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.ops.unison_emulation.set_launch(64, False)
        for width in (1, 3, 4, 129, 300, 1025):
            values = torch.randn((7, width + 1), generator=generator).to(dtype)[:, 1:]
            members = torch.randint(-1, 8, (4, 3), generator=generator)
            weights = torch.randn((4, 3), generator=generator)
            for out in (dtype, torch.float32):
                merged = torch.full((4, width), torch.nan, dtype=out)
                torch.ops.unison_emulation.cfg_merge(values, members, weights, merged)
                assert torch.equal(merged, cfg_merge_reference(values, members, weights, out))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ids_dtype", [None, torch.int32, torch.int64])
    def test_embed_streams(self, dtype: torch.dtype, ids_dtype: torch.dtype | None) -> None:
        torch.ops.unison_emulation.set_launch(32, False)
        for streams, width in ((1, 5), (4, 64), (9, 301)):
            arguments = embedding_arguments(width, streams, width, dtype, ids_dtype)
            found = arguments[3].new_empty(len(arguments[5]), width)
            torch.ops.unison_emulation.embed_streams(*arguments, found)
            assert torch.equal(found, embed_streams_reference(*arguments))

    def test_phases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rule's own tests, with the emulated operators in the place of the compiled ones."""
        from tests.sampler import test_phase_machine as tests

        torch.ops.unison_emulation.set_launch(32, False)
        for name in ("gather_streams", "constrain_streams", "find_repeats", "commit_streams"):
            emulated = getattr(torch.ops.unison_emulation, name)
            monkeypatch.setattr(torch.ops.unison, name, emulated)
        for seed in range(20):
            for layout in (tests.published_layout(), tests.layout_with_rules()):
                tests.check_begin(layout, seed)
                tests.check_advance(layout, seed, grouped=seed % 2 == 0)
                tests.check_repeats(layout, seed)
        tests.check_gather(7, 5, torch.int64)

    def test_block_of_1024_threads(self) -> None:
        problem = random_problem(4, 4, 1, 9000, torch.bfloat16)
        assert torch.equal(_emulate(problem, cached=False, threads=1024), problem.reference())


def _on_gpu(arguments: SampleArguments) -> SampleArguments:
    values = {field.name: getattr(arguments, field.name) for field in fields(arguments)}
    moved = {name: value.cuda() for name, value in values.items() if torch.is_tensor(value)}
    return replace(arguments, **moved)


def _sample_on_gpu(logits: torch.Tensor, arguments: SampleArguments) -> None:
    moved = _on_gpu(arguments)
    sample_streams(logits.cuda(), moved)
    arguments.tokens.copy_(moved.tokens)


def _through_gpu(operator: Any) -> Any:
    """An operator on the CPU's tensors that runs on copies of them on the GPU."""

    def default(*arguments: Any) -> None:
        moved = [value.cuda() if torch.is_tensor(value) else value for value in arguments]
        operator.default(*moved)
        for value, there in zip(arguments, moved, strict=True):
            if torch.is_tensor(value) and not torch.equal(value, there.cpu()):
                value.copy_(there)

    return SimpleNamespace(default=default)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestKernelOnGpu:
    """The compiled kernel."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equals_reference(self, dtype: torch.dtype) -> None:
        for seed, candidates in enumerate((1, 31, 257, 1024, 1025, 8192, 8193, 20000, 151936)):
            problem = random_problem(seed, 32 if candidates < 10000 else 6, 3, candidates, dtype)
            tokens = problem.tokens_of(_sample_on_gpu)
            assert torch.equal(tokens, problem.reference()), candidates

    def test_thresholds(self) -> None:
        for problem in (threshold_problem(0, 2000, 150), equal_scores_problem(4, 2500)):
            assert torch.equal(problem.tokens_of(_sample_on_gpu), problem.reference())

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_groups(self, dtype: torch.dtype) -> None:
        for seed, candidates in enumerate((1, 31, 1024, 8192, 9000)):
            problem = random_group_problem(seed, 16, 4, candidates, dtype)
            expected = problem.tokens_of(sample_streams_reference)
            assert torch.equal(problem.tokens_of(_sample_on_gpu), expected), candidates

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_cfg_merge_and_embed(self, dtype: torch.dtype) -> None:
        values = torch.randn((64, 1000)).to(dtype)
        members, weights = torch.randint(-1, 65, (40, 3)), torch.randn((40, 3))
        merged = cfg_merge(values.cuda(), members.cuda(), weights.cuda())
        assert torch.equal(merged.cpu(), cfg_merge_reference(values, members, weights))
        arguments = embedding_arguments(1, 9, 1000, dtype, torch.int64)
        moved = [None if argument is None else argument.cuda() for argument in arguments]
        found = embed_streams(*moved)
        assert torch.equal(found.cpu(), embed_streams_reference(*arguments))

    def test_phases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rule's own tests, with every call made on copies of its arguments on the GPU."""
        from tests.sampler import test_phase_machine as tests

        for name in ("gather_streams", "constrain_streams", "find_repeats", "commit_streams"):
            operator = _through_gpu(getattr(torch.ops.unison, name))
            monkeypatch.setattr(torch.ops.unison, name, operator)
        for seed in range(20):
            tests.check_begin(tests.published_layout(), seed)
            tests.check_advance(tests.published_layout(), seed, grouped=seed % 2 == 0)
            tests.check_repeats(tests.published_layout(), seed)
        tests.check_gather(7, 5, torch.int64)
        tests.check_gather(8, 9, torch.int32)

    def test_graph_capture(self) -> None:
        problem = random_problem(9, 32, 9, 1024)
        logits = problem.logits.cuda()
        arguments = _on_gpu(problem.arguments(torch.empty((32, 9), dtype=torch.int32)))
        sample_streams(logits, arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            sample_streams(logits, arguments)
        arguments.tokens.fill_(POISON)
        graph.replay()
        assert torch.equal(arguments.tokens.cpu(), problem.reference())

    def test_mathematics_has_the_same_bits(self) -> None:
        x = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) * 80 + 1e-6
        for function in (torch.ops.unison.deterministic_log, torch.ops.unison.deterministic_exp):
            assert torch.equal(function(x.cuda()).cpu(), function(x))
