"""Scores one checkpoint on the samples, while the model in memory is that checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval_service import scores, suites
from eval_service.generation.engine.prompts import Prompts, end_tokens, opening_of
from eval_service.generation.engine.sampling import Sampling
from eval_service.generation.engine.text import Opening
from eval_service.recipes.job import Job
from eval_service.recipes.model import Loaded
from eval_service.recipes.progress import Progress
from eval_service.recipes.samples import Samples, context_of
from eval_service.scoring.generation import Writing, write_answers
from eval_service.scoring.perplexity import Forwarding, Losses
from modelkit.chat import ChatEncoder
from modelkit.encoded import RowEncoder


@dataclass(slots=True)
class Found:
    """What was found of one checkpoint before its answers are compared."""

    step: int
    base_model: bool
    losses: Losses | None = None
    answers: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    suites: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Finds what the named scores are computed from. The samples are cut into batches once for all checkpoints."""

    def __init__(
        self, job: Job, loaded: Loaded, samples: Samples, encoder: RowEncoder, names: Sequence[str], progress: Progress
    ) -> None:
        self._job, self._loaded, self._samples, self._progress = job, loaded, samples, progress
        self._needs = {scores.BY_NAME[name].needs for name in names}
        self._wants_losses = "perplexity" in names
        self._forwarding = Forwarding(
            samples.sequences, samples.belongs, loaded.model, pad_id=loaded.pad_id, between=lambda: progress.tell(0.0)
        )
        template = encoder.template if isinstance(encoder, ChatEncoder) else None
        self._prompts = Prompts(template.source, template.special_tokens) if template else None
        self._writing = self._written_so(self._prompts) if self._prompts else None

    def score(self, step: int, *, base_model: bool = False) -> Found:
        """What the model, as it is now, makes of the samples."""
        model = self._loaded.model
        found = Found(step, base_model)
        if self._wants_losses:
            found.losses = self._forwarding.losses(model)
        if scores.CLASSES in self._needs:
            found.classes = self._forwarding.classes(model).tolist()
        if scores.ANSWERS in self._needs and self._writing is not None:
            found.answers = self._answers(self._writing)
        if self._job.suites:
            self._progress.tell(1.0)
            seconds = self._job.suite_stall_seconds
            with self._progress.silent_step(seconds, suites.stalled(self._job.suites, seconds)):
                found.suites = suites.run(self._job.suites, model, self._loaded.tokenizer, self._progress.heed)
        return found

    def _answers(self, writing: Writing) -> list[str]:
        """The text of an answer to each sample."""
        tokens = write_answers(self._loaded.model, self._samples.prompts, writing, self._counting(writing.max_tokens))
        texts = [self._loaded.tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens]
        opening = self._opening()
        answers = [without(opening, text) for text in texts]
        return [cut(answer, self._job.answering.stop).strip() for answer in answers]

    def _opening(self) -> str:
        """What answers begin with because the template writes it."""
        tokenizer: Any = self._loaded.tokenizer
        if self._prompts is None:
            return ""
        return opening_of(
            self._prompts,
            lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
            lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        )

    def _written_so(self, prompts: Prompts) -> Writing:
        tokenizer, answering = self._loaded.tokenizer, self._job.answering
        added = frozenset(tokenizer.added_tokens_decoder)
        configured = (self._loaded.config, self._loaded.model.generation_config, tokenizer)
        ends = end_tokens(
            [getattr(item, "eos_token_id", None) for item in configured],
            prompts,
            lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
            added.__contains__,
        )
        chosen: Any = answering.sampling
        asked = Writing(Sampling(**chosen), answering.max_tokens, ends, context_of(self._loaded.config))
        return replace(asked, max_tokens=max(map(asked.room, self._samples.prompts), default=asked.max_tokens))

    def rooms(self) -> list[int]:
        """Tokens that the answer to each sample can have, which the model's context limits; empty without answers."""
        if scores.ANSWERS not in self._needs or self._writing is None:
            return []
        return [self._writing.room(prompt) for prompt in self._samples.prompts]

    def _counting(self, most: int) -> Callable[[], None]:
        """What is called for each token of a batch of answers, which have so many at most."""
        written = 0

        def between() -> None:
            nonlocal written
            self._progress.tell(min(1.0, written / most))
            written += 1

        return between


def without(opening: str, text: str) -> str:
    """A whole answer without what it was taught to begin with."""
    taught = Opening(opening)
    return taught.add(text) + taught.end()


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some texts that end it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
