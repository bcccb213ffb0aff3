# SPDX-License-Identifier: Apache-2.0
"""The compiled operators, ``torch.ops.unison``, each beside its definition in plain PyTorch.

A module here has the name of the folder of ``csrc/`` that holds its C++ and CUDA sources:

- :mod:`~vllm.unison.ops.cfg_merge`: the lanes of a group, merged for classifier-free guidance;
- :mod:`~vllm.unison.ops.sample`: one token per group and stream, defined by
  :mod:`~vllm.unison.ops.sample_reference`;
- :mod:`~vllm.unison.ops.embed`: the embeddings of a position's streams, summed;
- :mod:`~vllm.unison.ops.phase_step`: what a step may emit, and what it does to its requests;
- :mod:`~vllm.unison.ops.philox` and :mod:`~vllm.unison.ops.deterministic_math`: the sampler's
  random numbers and its logarithm and exponential, the same bits on every device;
- :mod:`~vllm.unison.ops.extension`: loading the compiled library.

Nothing in this package imports another part of the engine.
"""
