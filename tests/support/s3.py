"""Real S3 servers: SeaweedFS, and JuiceFS with MinIO's gateway. They differ in what they can do, as servers do."""

import io
import json
import subprocess
import sysconfig
import uuid
from pathlib import Path
from typing import Self
from urllib.parse import quote

import urllib3
from minio import Minio

from tests.support.ports import free_port
from tests.support.process import ServerProcess
from tests.support.waiting import wait_until

ACCESS_KEY = "test-access"
SECRET_KEY = "test/secret+key="
BUCKET = "tunesmith"
GRPC_SOCKETS = ("master", "volume", "filer", "s3")


class S3Server:
    """One server with one bucket. address() gives each caller a prefix of its own."""

    name: str

    def __init__(self, process: ServerProcess, port: int) -> None:
        self.process = process
        self.port = port

    def __enter__(self) -> Self:
        self.process.start()
        wait_until(self._make_bucket, 30, f"{self.name} to make a bucket")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def address(self, prefix: str | None = None, **options: str) -> str:
        """An s3:// address with the server's credentials and, unless one is given, a new prefix."""
        query = "&".join(f"{name}={value}" for name, value in {"secure": "false", **options}.items())
        credentials = f"{quote(ACCESS_KEY, safe='')}:{quote(SECRET_KEY, safe='')}"
        path = uuid.uuid4().hex if prefix is None else prefix
        return f"s3://{credentials}@127.0.0.1:{self.port}/{BUCKET}/{path}?{query}"

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Starts it again on its port and data."""
        self.process.kill()
        self.process.start()
        wait_until(self._make_bucket, 30, f"{self.name} to have its bucket again")

    def _make_bucket(self) -> bool:
        pool = urllib3.PoolManager(retries=False, timeout=5)
        client = Minio(
            f"127.0.0.1:{self.port}", ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1", http_client=pool
        )
        try:
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
            # A server may answer before it has room to write to.
            client.put_object(BUCKET, "ready", io.BytesIO(), 0)
        except Exception:  # noqa: BLE001  whatever goes wrong, it is not ready
            return False
        return True


class SeaweedServer(S3Server):
    """SeaweedFS, all parts in one process. It honours If-None-Match."""

    name = "seaweedfs"

    def __init__(self, directory: Path) -> None:
        data, temporary = directory / "data", directory / "tmp"
        data.mkdir(parents=True)
        temporary.mkdir()
        identities = directory / "identities.json"
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities.write_text(
            json.dumps({"identities": [{"name": "test", "credentials": credentials, "actions": actions}]})
        )
        ports = {part: (free_port(), free_port()) for part in GRPC_SOCKETS}
        port = ports["s3"][0]
        options = [
            f"-dir={data}",
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.telemetry=false"),
            *("-volume.max=0", "-master.volumeSizeLimitMB=128", "-volume.minFreeSpace=64MiB"),
            f"-s3.config={identities}",
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-{part}.port={http}" for part, (http, _) in ports.items()),
            *(f"-{part}.port.grpc={grpc}" for part, (_, grpc) in ports.items()),
            *(f"-{part}.localSocket={temporary / part}.sock" for part in ("filer", "s3")),
        ]
        # These sockets it always puts into /tmp.
        self._sockets = [Path(f"/tmp/seaweedfs-{part}-grpc-{grpc}.sock") for part, (_, grpc) in ports.items()]
        process = ServerProcess(
            [Path(sysconfig.get_path("scripts")) / "weed", "server", *options],
            directory / "weed.log",
            ready=lambda: _answers(port, "/status"),
            environment={"TMPDIR": str(temporary)},
        )
        super().__init__(process, port)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for path in self._sockets:
            path.unlink(missing_ok=True)


class JuiceServer(S3Server):
    """JuiceFS on a directory, behind MinIO's gateway of 2021. It ignores If-None-Match and shows empty folders."""

    name = "juicefs"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        port, metrics = free_port(), free_port()
        binary = Path(sysconfig.get_path("scripts")) / "juicefs"
        metadata = f"sqlite3://{directory}/meta.db"
        self._format = [str(binary), "format", "--storage", "file", "--bucket", f"{directory}/data/"]
        self._format += ["--trash-days", "0", metadata, "test"]
        options = ["--multi-buckets", "--keep-etag", "--object-tag", "--object-meta", "--no-usage-report"]
        options += ["--backup-meta", "0", "--no-banner", "--log", f"{directory}/gateway.log"]
        options += ["--cache-dir", f"{directory}/cache", "--metrics", f"127.0.0.1:{metrics}"]
        process = ServerProcess(
            [binary, "gateway", *options, metadata, f"127.0.0.1:{port}"],
            directory / "juicefs.log",
            ready=lambda: _answers(port, "/minio/health/live"),
            environment={"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY},
        )
        super().__init__(process, port)

    def __enter__(self) -> Self:
        done = subprocess.run(self._format, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"juicefs format: {done.stderr}")
        return super().__enter__()


def _answers(port: int, path: str) -> bool:
    try:
        answer = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=2)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status < 500
