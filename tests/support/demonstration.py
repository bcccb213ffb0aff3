# SPDX-License-Identifier: Apache-2.0
"""What demonstrations and examples say, and the packaged model writes when it hears itself."""

SENTENCE = "The road to the village was closed by the snow."

SECOND = "My mother has a small shop in the town."
"""What the second voice, joe, says beside it."""
