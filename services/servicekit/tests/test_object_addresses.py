"""Addresses of object stores: what they may say, and that they keep their secrets."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import InvalidArgument
from servicekit.objects import directory_of, open_object_store, redacted_url
from servicekit.objects.file import FileObjectStore
from servicekit.objects.s3 import S3ObjectStore
from servicekit.objects.s3_address import MEBIBYTE, S3Address
from servicekit.objects.store import check_key, is_key

SECRET = "s3cr/et+Key=@:"
ENCODED = "s3cr%2Fet%2BKey%3D%40%3A"


def test_everything_an_address_can_say() -> None:
    url = (
        f"s3://the%2Fkey:{ENCODED}@minio.example:9000/bucket/some/prefix/"
        "?secure=false&region=eu-west-1&create_bucket=true&part_mib=64&threads=4&retries=2"
    )
    assert S3Address.parse(url, {}) == S3Address(
        endpoint="minio.example:9000",
        bucket="bucket",
        prefix="some/prefix/",
        access_key="the/key",
        secret_key=SECRET,
        secure=False,
        region="eu-west-1",
        create_bucket=True,
        part_bytes=64 * MEBIBYTE,
        threads=4,
        retries=2,
    )


def test_credentials_from_the_environment() -> None:
    environment = {"TUNESMITH_S3_ACCESS_KEY": "key", "TUNESMITH_S3_SECRET_KEY": SECRET}
    address = S3Address.parse("s3://[::1]:9000/bucket", environment)
    assert (address.endpoint, address.access_key, address.secret_key) == ("[::1]:9000", "key", SECRET)
    assert (address.prefix, address.secure) == ("", True)
    assert S3Address.parse(f"s3://other:{ENCODED}@h/bucket", environment).access_key == "other"
    assert S3Address.parse("s3://other@h/bucket", environment).secret_key == SECRET


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://h/bucket", ["no access key", "no secret key", "TUNESMITH_S3_SECRET_KEY"]),
        ("s3://k:s@h/", ["bucket"]),
        ("s3://k:s@h/B_ucket", ["bucket"]),
        ("s3://k:s@/bucket", ["host"]),
        ("s3://k:s@h:99999/bucket", ["port"]),
        ("s3://k:s@h:port/bucket", ["port"]),
        ("s3://k:s@h/bucket/../x", ["prefix"]),
        ("s3://k:s@h/bucket?secure=maybe&part_mib=1&colour=red", ["secure", "part_mib", "colour"]),
        ("s3://k:s@h/bucket#x", ["#"]),
        ("file://host/path", ["host"]),
        ("file:relative/path", ["absolute"]),
        ("file:///path?x=1", ["options"]),
        ("gs://bucket", ["'gs'", "file://", "s3://"]),
        ("/just/a/path", ["scheme"]),
        ("", ["scheme"]),
    ],
)
def test_every_problem_is_named(url: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_S3_ACCESS_KEY", raising=False)
    monkeypatch.delenv("TUNESMITH_S3_SECRET_KEY", raising=False)
    with pytest.raises(InvalidArgument) as caught:
        open_object_store(url)
    assert {problem.field for problem in caught.value.problems} == {"object_store_url"}
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@host:9000/bucket",
        f"s3://key:{ENCODED}@host:9000/Bad_Bucket?x=y",
        f"gs://key:{SECRET}@host/bucket",
        f"file://key:{SECRET}@host/bucket",
    ],
)
def test_problems_never_repeat_the_secret(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_object_store(url)
    for part in ("s3cr", "et+Key", "%2BKey"):
        assert part not in str(caught.value) + repr(caught.value)


def test_the_secret_is_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"s3://key:{ENCODED}@127.0.0.1:1/bucket/prefix?retries=0"
    store = open_object_store(url)
    assert isinstance(store, S3ObjectStore)
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:
        asyncio.run(store.stat("k"))
    text = f"{store!r} {store} {S3Address.parse(url)!r} {S3Address.parse(url)} {caught.value!r} {caplog.text}"
    assert SECRET not in text
    assert ENCODED not in text
    assert repr(store) == "S3ObjectStore('s3://127.0.0.1:1/bucket/prefix/')"
    asyncio.run(store.close())


def test_redaction() -> None:
    assert redacted_url(f"s3://key:{ENCODED}@host:9000/bucket?x=1") == "s3://host:9000/bucket?x=1"
    assert redacted_url("s3://key:not/encoded@host/bucket") == "s3://host/bucket"
    assert redacted_url("file:///var/lib/objects") == "file:///var/lib/objects"


def test_directories() -> None:
    for url in ("file:///var/lib/tune%20smith", "file://localhost/var/lib/tune%20smith"):
        store = open_object_store(url)
        assert isinstance(store, FileObjectStore)
        assert repr(store) == "FileObjectStore('/var/lib/tune smith')"


def test_a_directory_needs_no_s3_client() -> None:
    program = (
        "import sys; from servicekit.objects import open_object_store; open_object_store('file:///tmp/x');"
        "sys.exit('minio' in sys.modules or 'urllib3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_a_directory_lies_on_this_machine() -> None:
    assert directory_of("file:///var/lib/objects%20here") == Path("/var/lib/objects here")
    assert directory_of(f"s3://key:{ENCODED}@host/bucket") is None


@given(st.text(st.sampled_from("a./\\\0\n-ü"), max_size=12))
def test_accepted_keys_cannot_climb(key: str) -> None:
    try:
        check_key(key)
    except InvalidArgument:
        assert not is_key(key)
        return
    assert is_key(key)
    parts = key.split("/")
    assert not any(part in ("", ".", "..") for part in parts)
    assert not any(character in key for character in "\\\0\n")
