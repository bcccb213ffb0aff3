# SPDX-License-Identifier: Apache-2.0
"""No test depends on how fast the machine is; ruff's banned API covers clocks and sleeping."""

from pathlib import Path

from hypothesis import HealthCheck, settings


def test_examples_may_take_any_time() -> None:
    assert settings.get_current_profile_name() == "unison"
    assert settings.default is not None and settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_no_test_has_a_deadline_or_a_profile_of_its_own() -> None:
    tests = Path(__file__).parent
    own = {Path(__file__), tests / "conftest.py"}
    words = ("deadline=", "load_profile(", "register_profile(")
    found = [
        f"{path.relative_to(tests)}: {word}"
        for path in sorted(tests.rglob("*.py"))
        if path not in own
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found
