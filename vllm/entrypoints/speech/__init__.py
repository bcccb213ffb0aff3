# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface of multi-stream models: speech, transcription, chat with audio."""
