"""Settings from the environment: every problem at once, and no service open to the world by accident."""

from pathlib import Path

import pytest

from servicekit.settings import ServiceSettings, is_loopback, load

SECRET = "s3cret"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TUNESMITH_"):
            monkeypatch.delenv(name)


def test_defaults_are_usable() -> None:
    settings = load(ServiceSettings)
    assert is_loopback(settings.host)
    assert settings.service_token() is None


def test_every_problem_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"PORT": "many", "LOG_LEVEL": "LOUD", "DRAIN_SECONDS": "-1"}.items():
        monkeypatch.setenv(f"TUNESMITH_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load(ServiceSettings)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    for name in ("TUNESMITH_PORT", "TUNESMITH_LOG_LEVEL", "TUNESMITH_DRAIN_SECONDS"):
        assert name in printed


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_no_service_is_open_without_authentication(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_HOST", host)
    with pytest.raises(SystemExit):
        load(ServiceSettings)
    assert "TUNESMITH_PUBLIC_KEY_FILE" in capsys.readouterr().err
    monkeypatch.setenv("TUNESMITH_PUBLIC_KEY_FILE", "/some/key.pem")
    assert load(ServiceSettings).host == host


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_secrets_are_not_in_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    monkeypatch.setenv("TUNESMITH_NATS_URL", f"nats://user:{SECRET}@host")
    monkeypatch.setenv("TUNESMITH_NATS_PASSWORD", SECRET)
    monkeypatch.setenv("TUNESMITH_OBJECT_STORE_URL", f"s3://key:{SECRET}@host/bucket")
    monkeypatch.setenv("TUNESMITH_SERVICE_TOKEN_FILE", str(token))
    settings = load(ServiceSettings)
    assert SECRET not in f"{settings!r} {settings}"
    assert (settings.nats_password_value(), settings.service_token()) == (SECRET, SECRET)
