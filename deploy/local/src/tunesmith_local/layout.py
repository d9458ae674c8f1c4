"""Where things lie in a data directory."""

from pathlib import Path


class DataDirectory:
    """The one directory that holds everything of a platform on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.admin_token = root / "admin.token"
        self.keys = root / "keys"
        self.run = root / "run"
        self.logs = root / "logs"
        self.nats = root / "nats"
        self.database = root / "tunesmith.db"
        self.objects = root / "objects"
        self.work = root / "work"
        self.outputs = root / "outputs"
        self.models = root / "models"
        self.datasets = root / "datasets"
        self.lock = self.run / "lock"
        self.ports = self.run / "ports.json"
        self.processes = self.run / "processes.json"
        self.url = self.run / "url"

    @property
    def private(self) -> tuple[Path, ...]:
        """What belongs to the platform alone: no user names it as a model, as data or as an output."""
        files = (self.admin_token, self.database)
        return (self.keys, self.run, self.logs, self.nats, self.objects, self.work, *files)

    def create(self) -> None:
        """Makes what is missing; only the user may look inside. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.keys, self.run, self.logs, self.nats, self.objects, self.work):
            folder.mkdir(exist_ok=True, mode=0o700)
        for folder in (self.outputs, self.models, self.datasets):
            folder.mkdir(exist_ok=True)

    def log(self, name: str) -> Path:
        """Log file of a process."""
        return self.logs / f"{name}.log"
