# SPDX-License-Identifier: Apache-2.0
"""What a request must be before the scheduler sees it; docs/admission.md is its page.

`streams` has what multi-stream models ask of any request, `guidance` what guidance asks. Fields
that no model accepts are refused before, where SamplingParams are verified (`messages`), and
prompts where they are built (`frontend.prompts`). All of them raise InvalidRequestError, which
names the field that the user gave.
"""
