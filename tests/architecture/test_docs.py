"""What is generated from the code is what the code says."""

from __future__ import annotations

from docs import generate


def test_the_page_of_settings_is_current() -> None:
    """A setting that changes without ``make docs`` fails here."""
    assert (generate.ROOT / "docs" / "settings.md").read_text() == generate.settings_page()


def test_the_example_environment_is_current() -> None:
    """The example file names every setting with its default."""
    assert (generate.ROOT / ".env.example").read_text() == generate.env_example()
