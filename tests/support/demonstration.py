# SPDX-License-Identifier: Apache-2.0
"""What demonstrations and examples say, and the packaged model writes when it hears itself."""

SENTENCE = "He was standing near the door."

SECOND = "The horse was tired after the long day."
"""What the second voice, joe, says beside it."""
