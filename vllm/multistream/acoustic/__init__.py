# SPDX-License-Identifier: Apache-2.0
"""From codec frames to samples: whole, or in chunks while the frames are being made."""
