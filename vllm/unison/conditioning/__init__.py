# SPDX-License-Identifier: Apache-2.0
"""What a model is given besides its tokens: encoder states, and later prefix embeddings."""
