"""Problems of a dataset, counted by kind over all lines."""

from dataclasses import dataclass, field

from modelkit.datasets.origins import Origins

FIRST_LINES = 5
MAX_KINDS = 50


@dataclass(slots=True)
class DatasetProblem:
    """One kind of problem of a file: how often it occurs and the first lines or rows (from 1) that have it.

    Line 0 counts for the file as a whole and is not listed. unit is what is counted: "line" or "row".
    """

    file: str
    reason: str
    message: str
    hint: str
    count: int = 0
    first_lines: list[int] = field(default_factory=list)
    unit: str = "line"

    def __str__(self) -> str:
        lines = ", ".join(map(str, self.first_lines))
        more = ", ..." if self.count > len(self.first_lines) else ""
        where = f" ({self.count} {self.unit}{'' if self.count == 1 else 's'}: {lines}{more})" if lines else ""
        return f"{self.file}: {self.message}{where}; {self.hint}"


class ProblemCounter:
    """Collects the problems of one file. Kinds beyond a limit are counted together."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._kinds: dict[tuple[str, str, str], DatasetProblem] = {}

    def add(self, reason: str, message: str, hint: str, line: int = 0) -> None:
        """Counts a problem of a line."""
        file, unit, number = self._origins.find(line)
        key = (file, reason, message)
        problem = self._kinds.get(key)
        if problem is None:
            if len(self._kinds) >= MAX_KINDS:
                key = ("", "OTHER", "further problems")
                reason, message, hint = "OTHER", "further problems", "mend the others first"
            found = DatasetProblem(file, reason, message, hint, unit=unit)
            problem = self._kinds.setdefault(key, found)
        problem.count += 1
        if number and len(problem.first_lines) < FIRST_LINES:
            problem.first_lines.append(number)

    @property
    def problems(self) -> tuple[DatasetProblem, ...]:
        """Every kind found, in order of appearance."""
        return tuple(self._kinds.values())
