"""Settings from the environment: what is read, what is refused, and what is shown."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StartupError
from shared.settings import (
    CommonSettings,
    Origins,
    Positive,
    Seconds,
    Secret,
    bind_address,
    describe,
    load,
    masked,
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of each kind."""

    count: Annotated[Positive, msgspec.Meta(le=1000, description="how many")] = 3
    wait: Annotated[Seconds, msgspec.Meta(description="seconds to wait")] = 1.5
    enabled: bool = True
    origins: Origins = ("a", "b")
    folder: Path = Path("./var")
    maybe: str | None = None
    key: Annotated[Secret | None, msgspec.Meta(description="signs things")] = None


def test_nothing_set_gives_the_defaults() -> None:
    """The environment of anybody who runs the service as it comes."""
    assert load(Sample, {}) == Sample()
    assert load(CommonSettings, {}) == CommonSettings()


def test_values_are_read_by_their_upper_case_names() -> None:
    """Each kind has its way of being written; spaces around it do not count."""
    environ = {
        "COUNT": " 7 ",
        "WAIT": "0.25",
        "ENABLED": "No",
        "ORIGINS": "https://a.example, https://b.example ,",
        "FOLDER": "/srv/data",
        "MAYBE": "x",
        "KEY": "k" * 32,
        "count": "9",
        "OTHER": "ignored",
    }
    assert load(Sample, environ) == Sample(
        count=7,
        wait=0.25,
        enabled=False,
        origins=("https://a.example", "https://b.example"),
        folder=Path("/srv/data"),
        maybe="x",
        key="k" * 32,
    )


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_is_not_set(text: str) -> None:
    """As deployment templates leave it."""
    fields = msgspec.structs.fields(Sample)
    assert load(Sample, {field.name.upper(): text for field in fields}) == Sample()
    assert load(Sample, {"COUNT": text}, {"COUNT": "5"}).count == 5


def test_an_assembly_has_defaults_of_its_own() -> None:
    """They replace the struct's defaults; the environment goes before both."""
    defaults = {"COUNT": "5", "WAIT": "9"}
    chosen = load(Sample, {"COUNT": "6"}, defaults)
    assert (chosen.count, chosen.wait) == (6, 9.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), ("no", False)],
)
def test_truths_are_spelled_in_several_ways(text: str, value: bool) -> None:
    """People write them differently."""
    assert load(Sample, {"ENABLED": text}).enabled is value


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("COUNT", "many", "expected `int`"),
        ("COUNT", "0", "expected `int` >= 1"),
        ("COUNT", "1001", "expected `int` <= 1000"),
        ("COUNT", "1.5", "expected `int`"),
        ("COUNT", "1_0", "expected `int`"),
        ("COUNT", "\u0663", "expected `int`"),
        ("WAIT", "0", "expected `float` > 0"),
        ("WAIT", "-1", "expected `float` > 0"),
        ("WAIT", "nan", "expected `float`"),
        ("WAIT", "inf", "finite"),
        ("WAIT", "1e999", "range"),
        ("WAIT", "soon", "expected `float`"),
        ("ENABLED", "perhaps", "expected `bool`"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line(variable: str, text: str, rule: str) -> None:
    """The message has the variable, what it was set to, and what is allowed."""
    with pytest.raises(StartupError) as caught:
        load(Sample, {variable: text})
    message = str(caught.value)
    assert message.startswith(f"{variable}={text!r}: ")
    assert rule in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EVENT_PARTITIONS", "0"),
        ("EVENT_PARTITIONS", "101"),
        ("PROGRESS_UPDATE_INTERVAL", "inf"),
        ("AUTH_MODE", "none"),
        ("AUTH_JWT_LEEWAY", "61"),
        ("AUTH_JWT_LEEWAY", "nan"),
        ("LOG_LEVEL", "loud"),
        ("SHUTDOWN_TIMEOUT", "-1"),
        ("SHUTDOWN_TIMEOUT", "inf"),
    ],
)
def test_values_that_would_do_harm_are_refused(variable: str, text: str) -> None:
    """A service with such a setting does not start."""
    with pytest.raises(StartupError, match=variable):
        load(CommonSettings, {variable: text})


class Keyed(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that has a rule."""

    key: Annotated[Secret, msgspec.Meta(min_length=8)] = "x" * 8


def test_a_secret_is_not_in_the_message() -> None:
    """Not even when it is wrong."""
    with pytest.raises(StartupError) as caught:
        load(Keyed, {"KEY": "hunter2"})
    assert "KEY=***: " in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_secrets_are_masked_where_they_are_shown() -> None:
    """Whether one is set can be seen, its value cannot."""
    assert masked(Sample())["KEY"] == ""
    assert masked(Sample(key="hunter2"))["KEY"] == "***"
    shown = masked(load(CommonSettings, {"REDIS_URL": "redis://:pw@h", "LOG_LEVEL": "debug"}))
    assert shown["REDIS_URL"] == "***"
    assert shown["LOG_LEVEL"] == "debug"


def test_what_is_shown_can_be_set_again() -> None:
    """The effective settings, printed, are an environment that gives the same settings."""
    some = Sample(count=7, wait=0.25, enabled=False, origins=(), folder=Path("/x"), maybe="y")
    assert load(Sample, masked(some)) == msgspec.structs.replace(some, origins=("a", "b"))
    many = Sample(origins=("x", "y", "z"))
    assert load(Sample, masked(many)) == many


def test_every_common_setting_says_what_it_means() -> None:
    """The generated table has a meaning in each row."""
    rows = list(describe(CommonSettings))
    assert [row for row in rows if not row[2]] == []
    assert ("EVENT_PARTITIONS", "16", "partitions of each stream family") in rows
    assert {"REDIS_URL", "DATA_DIR", "AUTH_MODE", "PROGRESS_TTL_SECONDS"} <= {
        variable for variable, _, _ in rows
    }


def any_environment() -> st.SearchStrategy[dict[str, str]]:
    """Return a strategy for environments with anything in our variables."""
    names = [field.name.upper() for field in msgspec.structs.fields(CommonSettings)]
    numbers = st.integers().map(str) | st.floats().map(repr) | st.just("9" * 5000)
    return st.dictionaries(st.sampled_from(names), st.text(max_size=12) | numbers, max_size=3)


@given(any_environment())
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    """Nothing in the environment ends in a traceback."""
    with contextlib.suppress(StartupError):
        masked(load(CommonSettings, environ))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9090", ("::1", 9090)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    """As it is written everywhere."""
    assert bind_address("PUBLIC_BIND", text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "8080", "host", "host:", ":8080", "[]:80", "host:x", "host:-1", "host:1.5"),
        *("host:65536", "host:99999999", "host:\u0668\u0660", "host: 80", "h:" + "9" * 5000),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message shows one that would do."""
    with pytest.raises(StartupError, match=r"PUBLIC_BIND=.*: expected host:port, such as 127"):
        bind_address("PUBLIC_BIND", text)


@given(st.text(max_size=20))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """Nothing else comes of it."""
    try:
        host, port = bind_address("PUBLIC_BIND", text)
    except StartupError:
        return
    assert host
    assert 0 <= port <= 65535


def test_settings_cannot_be_changed() -> None:
    """They are read once."""
    settings: Any = CommonSettings()
    with pytest.raises(AttributeError):
        settings.log_level = "debug"
