# SPDX-License-Identifier: Apache-2.0
"""Audio codecs behind one interface, and resampling to their sample rate."""

from vllm.multistream.codecs.base import Codec
from vllm.multistream.codecs.registry import load_codec, register_codec, registered_model_types

__all__ = ["Codec", "load_codec", "register_codec", "registered_model_types"]
