# SPDX-License-Identifier: Apache-2.0
"""Audio codecs behind one interface, and resampling to their sample rate."""

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.registry import load_codec, register_codec, registered_model_types

__all__ = ["Codec", "load_codec", "register_codec", "registered_model_types"]
