"""API keys: what a file may say, who is let in by them, and files that change."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from shared import api_keys
from shared.api_keys import ApiKeys, MalformedKeyFile, new_key, parse_keys
from shared.authenticator import IdentitySettings, authenticator
from shared.errors import StartupError, Unauthorized
from tests.processes import ROOT

SECRET: Final = "0123456789abcdef" * 4
DIGEST: Final = hashlib.sha256(SECRET.encode()).hexdigest()
KEY: Final = f"upl1_{SECRET}"
LINE: Final = f"upl1 {DIGEST} acme read write"


def keys(folder: Path, text: str = LINE) -> ApiKeys:
    """Return the keys of a file with this text."""
    path = folder / "keys"
    path.write_text(text)
    return ApiKeys(path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file for each key, not once a second."""
    monkeypatch.setattr(api_keys, "_CHECK_S", 0.0)


async def test_holder_acts_for_a_user_of_the_tenant(tmp_path: Path) -> None:
    """The name becomes the user, in the tenant of the key and with its scopes."""
    who = await keys(tmp_path).principal(KEY, "ada@example.com")
    assert (who.user_id, who.username, who.tenant) == ("ada@example.com",) * 2 + ("acme",)
    assert (sorted(who.scopes), who.expires_at) == (["read", "write"], None)


GOOD_FILES: Final = {
    "blank lines and comments": f"# ours\n\n  \n{LINE} # the batch job\n#{LINE}\n",
    "commas": f"upl1, {DIGEST}, acme, read, write",
    "tabs": LINE.replace(" ", "\t"),
    "Windows line ends": f"{LINE}\r\n",
    "upper-case digest": LINE.replace(DIGEST, DIGEST.upper()),
    "no end of line": LINE,
    "other keys": f"upl2 {'a' * 64} other\n{LINE}\nupl3 {'b' * 64} other admin",
    "an end far away": f"{LINE} until=2999-01-01T00:00:00Z",
}


@pytest.mark.parametrize("kind", GOOD_FILES)
async def test_good_files(tmp_path: Path, kind: str) -> None:
    """Ways to write the same line."""
    who = await keys(tmp_path, GOOD_FILES[kind]).principal(KEY, "ada")
    assert (who.tenant, sorted(who.scopes)) == ("acme", ["read", "write"])


BAD_LINES: Final = {
    "a word": "hello",
    "no tenant": f"upl2 {DIGEST}",
    "digest too short": f"upl2 {DIGEST[:-1]} acme",
    "digest not hex": f"upl2 {'g' * 64} acme",
    "the key itself": f"{KEY} acme read",
    "underscore in the prefix": f"upl_2 {DIGEST} acme",
    "long prefix": f"{'u' * 33} {DIGEST} acme",
    "prefix twice": LINE,
    "long tenant": f"upl2 {DIGEST} {'t' * 129}",
    "tenant with a control character": f"upl2 {DIGEST} a\0b",
    "scope with quotes": f'upl2 {DIGEST} acme "read"',
    "until nothing": f"upl2 {DIGEST} acme until=",
    "until a day nobody knows": f"upl2 {DIGEST} acme until=2030-02-30T00:00:00Z",
    "until without a zone": f"upl2 {DIGEST} acme until=2030-01-01T00:00:00",
    "until twice": f"upl2 {DIGEST} acme until=2030-01-01T00:00:00Z until=2031-01-01T00:00:00Z",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_file_at_start(tmp_path: Path, kind: str) -> None:
    """A line that cannot be meant stops the start; it is named, and nothing of it is told."""
    with pytest.raises(StartupError, match=r"AUTH_API_KEYS_FILE.*: line 3: ") as refused:
        keys(tmp_path, f"# keys\n{LINE}\n{BAD_LINES[kind]}\n")
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)
    assert DIGEST not in str(refused.value)


def test_unreadable_file_at_start(tmp_path: Path) -> None:
    """So does a file that is not there, a folder, a huge one, and one that is no text."""
    huge, binary = tmp_path / "huge", tmp_path / "binary"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none", tmp_path, huge, binary):
        with pytest.raises(StartupError, match="AUTH_API_KEYS_FILE"):
            ApiKeys(path)


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever a file says, it has keys or is refused; nothing else happens."""
    with contextlib.suppress(MalformedKeyFile):
        assert all(len(one.digest) == 32 for one in parse_keys(text).values())


BAD_KEYS: Final[dict[str, str]] = {
    "empty": "",
    "the prefix alone": "upl1",
    "prefix and underscore": "upl1_",
    "the secret alone": SECRET,
    "no prefix": f"_{SECRET}",
    "unknown prefix": f"upl9_{SECRET}",
    "prefix in upper case": f"UPL1_{SECRET}",
    "secret in upper case": f"upl1_{SECRET.upper()}",
    "last letter missing": KEY[:-1],
    "one letter more": f"{KEY}0",
    "last letter other": f"{KEY[:-1]}0",
    "the digest": f"upl1_{DIGEST}",
    "two underscores": KEY.replace("_", "__"),
    "space in front": f" {KEY}",
    "space behind": f"{KEY} ",
    "newline": f"{KEY}\n",
    "NUL": f"{KEY}\0",
    "wildcard": "upl1_*",
    "lone surrogate": f"upl1_{SECRET[:-1]}\udcff",
    "full-width digits": f"upl1_{chr(0xFF10)}{SECRET[1:]}",
    "huge": "upl1_" + SECRET * 10_000,
    "bearer": f"Bearer {KEY}",
}


@pytest.mark.parametrize("kind", BAD_KEYS)
async def test_security_item_23_bad_keys(tmp_path: Path, kind: str) -> None:
    """A key that is not exactly one of ours is refused, with one answer for all of them."""
    ours = keys(tmp_path)
    with pytest.raises(Unauthorized, match=r"^The API key is not valid\.$"):
        await ours.principal(BAD_KEYS[kind], "ada")


async def test_security_item_23_short_secrets_never_work(tmp_path: Path) -> None:
    """A secret that could be guessed opens nothing, though its hash is in the file."""
    weak = hashlib.sha256(b"hunter2").hexdigest()
    ours = keys(tmp_path, f"upl1 {weak} acme admin")
    with pytest.raises(Unauthorized):
        await ours.principal("upl1_hunter2", "ada")


async def test_security_item_23_same_cost_for_unknown_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a prefix is known, the secret is hashed and compared in constant time."""
    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ours = keys(tmp_path)
    for key in (f"upl1_{SECRET[::-1]}", f"upl9_{SECRET}", "", "upl1"):
        with pytest.raises(Unauthorized):
            await ours.principal(key, "ada")
    assert seen == [(32, 32)] * 4


async def test_security_item_23_keys_end(tmp_path: Path) -> None:
    """A key may have an end, which its principal knows; after it the key is refused."""
    ours = keys(tmp_path, f"{LINE} until=2999-01-01T00:00:00Z")
    assert (await ours.principal(KEY, "ada")).expires_at == 32_472_144_000
    ours = keys(tmp_path, f"{LINE} until=2020-01-01T00:00:00+01:00")
    with pytest.raises(Unauthorized, match="expired"):
        await ours.principal(KEY, "ada")


async def test_security_item_23_last_use_is_told(tmp_path: Path) -> None:
    """Who replaces a key can see whether the old one is still in use; failures don't count."""
    other = "f" * 64
    line = f"upl7 {hashlib.sha256(other.encode()).hexdigest()} acme"
    ours = keys(tmp_path, line)
    with pytest.raises(Unauthorized):
        await ours.principal(f"upl7_{SECRET}", "ada")
    before = {s.labels["prefix"] for m in api_keys.LAST_USED.collect() for s in m.samples}
    assert "upl7" not in before
    await ours.principal(f"upl7_{other}", "ada")
    (metric,) = api_keys.LAST_USED.collect()
    used = {one.labels["prefix"]: one.value for one in metric.samples}
    assert abs(used["upl7"] - time.time()) < 60


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a\n", "a\0", "a\u202e", "\ud800", "x" * 129, "\u2028"]
)
async def test_names_are_ids(tmp_path: Path, name: str) -> None:
    """A name that could not be a user id is refused."""
    with pytest.raises(Unauthorized, match="username"):
        await keys(tmp_path).principal(KEY, name)


def replaced(path: Path, text: str) -> None:
    """Put another file in the place of one, as a mounted secret changes."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("change", [replaced, Path.write_text], ids=["replaced", "rewritten"])
async def test_file_that_changes(tmp_path: Path, change: Callable[[Path, str], object]) -> None:
    """Keys that are added are good, and those that are removed are no good, without a start."""
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    ours = ApiKeys(path)
    with pytest.raises(Unauthorized):
        await ours.principal(KEY, "ada")
    change(path, LINE)
    assert (await ours.principal(KEY, "ada")).tenant == "acme"
    change(path, LINE.replace("acme", "other"))
    assert (await ours.principal(KEY, "ada")).tenant == "other"
    change(path, "")
    with pytest.raises(Unauthorized):
        await ours.principal(KEY, "ada")


@pytest.mark.usefixtures("at_once")
async def test_link_that_changes(tmp_path: Path) -> None:
    """A link that is pointed elsewhere, as Kubernetes does, counts as a change."""
    (tmp_path / "a").write_text("# none\n")
    (tmp_path / "b").write_text(LINE)
    link = tmp_path / "link"
    link.symlink_to("a")
    ours = ApiKeys(link)
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").replace(link)
    await ours.principal(KEY, "ada")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: replaced(path, f"{LINE}\nbroken\n"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["broken line", "gone", "no text", "a folder"],
)
async def test_file_that_breaks(tmp_path: Path, break_it: Callable[[Path], object]) -> None:
    """A broken file leaves the keys as they were, with one error for each, not each request."""
    path = tmp_path / "keys"
    ours = keys(tmp_path)
    break_it(path)
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            await ours.principal(KEY, "ada")
    errors = [one for one in logged if one["log_level"] == "error"]
    assert [one["event"] for one in errors] == ["api_keys_not_read"]
    assert DIGEST not in str(errors)
    if path.is_dir():
        path.rmdir()
    replaced(path, LINE.replace("acme", "repaired"))
    assert (await ours.principal(KEY, "ada")).tenant == "repaired"


async def test_file_is_left_alone_for_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many keys are shown, the file is looked at once a second."""
    ours, looked = keys(tmp_path), 0
    stat = os.stat

    def counted(path: Any, **more: Any) -> os.stat_result:
        nonlocal looked
        looked += path == tmp_path / "keys"
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", counted)
    started = time.monotonic()
    while time.monotonic() - started < 1.2:
        await ours.principal(KEY, "ada")
    assert 1 <= looked <= 1 + (time.monotonic() - started)


async def test_api_keys_alone() -> None:
    """Where no file is set, keys are refused; the open mode takes any."""
    required = authenticator(
        IdentitySettings(auth_mode="required", auth_jwt_secret="0123456789abcdef" * 2)
    )
    with pytest.raises(Unauthorized):
        await required.from_api_key(KEY, "ada")
    local = await authenticator(IdentitySettings(auth_mode="open")).from_api_key("", "")
    assert local.user_id == "local"


async def test_tokens_where_only_keys_are_good(tmp_path: Path) -> None:
    """A file of keys is enough to start; tokens are refused then."""
    path = tmp_path / "keys"
    path.write_text(LINE)
    auth = authenticator(IdentitySettings(auth_mode="required", auth_api_keys_file=path))
    assert (await auth.from_api_key(KEY, "ada")).user_id == "ada"
    with pytest.raises(Unauthorized):
        await auth.from_token("e30.e30.e30")


async def test_security_item_23_made_keys(tmp_path: Path) -> None:
    """A made key has 256 random bits, works with its line, and is not in it."""
    key, line = new_key("acme", ["read", "admin"])
    assert len(key.partition("_")[2]) == 64
    assert key.partition("_")[2] not in line
    who = await keys(tmp_path, line).principal(key, "ada")
    assert (who.tenant, sorted(who.scopes)) == ("acme", ["admin", "read"])
    assert new_key("acme", [])[0] != new_key("acme", [])[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a b"],
        ["acme,x"],
        ["acme#x"],
        ["acme", '"'],
        ["acme", "a b"],
        ["acme", "a#"],
        ["#"],
    ],
)
def test_keys_that_cannot_be_made(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file could not hold is refused in one line."""
    assert api_keys.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_command_that_makes_keys() -> None:
    """``python -m shared.api_keys`` prints the key once, and its line."""
    command = [sys.executable, "-m", "shared.api_keys", "acme", "read"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    _, key, _, line = done.stdout.splitlines()
    (prefix,) = parse_keys(line)
    assert key.startswith(f"{prefix}_")
    assert done.stderr == ""
