"""Scores checkpoints of one base model on the same samples, recommends one, and writes the report."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from eval_service import scores, suites
from eval_service.generation.engine.prompts import Prompts, end_tokens
from eval_service.generation.engine.sampling import Sampling
from eval_service.recipes.job import Job
from eval_service.recipes.model import Loaded, load
from eval_service.recipes.samples import Reader, Samples
from eval_service.recipes.variants import Switch
from eval_service.recommendation import recommend
from eval_service.report.content import Scored, content_of
from eval_service.report.files import write_report
from eval_service.scoring.answers import measure_answers, needs_embedder
from eval_service.scoring.embeddings import Embedder, HiddenStates, SentenceModel, installed_directory
from eval_service.scoring.generation import Writing, write_answers
from eval_service.scoring.measurements import Measurement, macro_f1, mean, perplexity
from eval_service.scoring.perplexity import Forwarding, Losses
from eval_service.scoring.totals import Card
from modelkit.chat import ChatEncoder
from modelkit.encoded import RowEncoder
from modelkit.loading import quieten
from workerkit.child.errors import OutputExists
from workerkit.child.events import WARNING, EventWriter
from workerkit.child.stopping import StopRequest


class Stopping(Exception):
    """The worker asked for an end."""


@dataclass(slots=True)
class Found:
    """What was found of one checkpoint before its answers are compared."""

    step: int
    base_model: bool
    losses: Losses | None = None
    answers: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    suites: dict[str, float] = field(default_factory=dict)


def evaluate(job: Job, events: EventWriter, stop: StopRequest) -> None:
    """Evaluates as the job says; ends with a done or a stopped event.

    Raises RecipeError, ModelkitError, OSError, MemoryError or torch.OutOfMemoryError.
    """
    try:
        Evaluation(job, events, stop).run()
    except Stopping:
        shutil.rmtree(job.output_dir, ignore_errors=True)
        events.stopped(step=0)


class Evaluation:
    """One evaluation, from loading the model to the report."""

    def __init__(self, job: Job, events: EventWriter, stop: StopRequest) -> None:
        self._job, self._events, self._stop = job, events, stop
        self._names = tuple(job.scores) or tuple(scores.measurable(job.learnt.objective))
        self._total = len(job.candidates) + job.include_base_model
        self._done = self._samples = 0

    def run(self) -> None:
        """Raises Stopping when that is asked for."""
        job, events = self._job, self._events
        if job.output_dir.exists() and any(job.output_dir.iterdir()):
            raise OutputExists(f"{job.output_dir} is not empty")
        quieten()
        events.phase("loading")
        first = job.candidates[0].directory if job.candidates else None
        loaded = load(job.model_dir, first, classifies=job.learnt.objective == "CLASSIFICATION")
        samples, encoder = Reader(job, loaded.tokenizer, loaded.config, loaded.labels, events).read()
        names = [name for name in self._names if _fits(name, samples)]
        events.log(
            f"{self._total} checkpoints on {len(samples)} of {samples.rows} {samples.split} rows: {', '.join(names)}"
        )
        found = self._score_all(loaded, samples, encoder, names)
        labels = loaded.labels
        embedder = self._embedder(loaded) if needs_embedder(names) and samples.questions else None
        del loaded
        events.phase("comparing answers")
        scored = [self._measure(item, samples, names, labels, embedder) for item in found]
        self._report(scored, samples, names, labels, embedder)

    def _score_all(self, loaded: Loaded, samples: Samples, encoder: RowEncoder, names: Sequence[str]) -> list[Found]:
        job, found = self._job, []
        self._samples = len(samples)
        self._events.started(step=0, total_steps=self._total * len(samples))
        switch = Switch(loaded.model, job.model_dir)
        forwarding = Forwarding(
            samples.sequences, samples.belongs, loaded.model, pad_id=loaded.pad_id, between=self._look
        )
        if job.include_base_model:
            self._events.phase("scoring the base model")
            found.append(self._score(0, True, loaded, samples, encoder, forwarding, names))
        for candidate in job.candidates:
            self._events.phase(f"scoring checkpoint {candidate.step}")
            switch.to(candidate.directory)
            found.append(self._score(candidate.step, False, loaded, samples, encoder, forwarding, names))
        switch.to_base()
        return found

    def _score(
        self,
        step: int,
        base_model: bool,
        loaded: Loaded,
        samples: Samples,
        encoder: RowEncoder,
        forwarding: Forwarding,
        names: Sequence[str],
    ) -> Found:
        """What one checkpoint, which the model is now, makes of the samples."""
        found = Found(step, base_model)
        if "perplexity" in names:
            found.losses = forwarding.losses(loaded.model)
            value = perplexity("perplexity", found.losses.sums.tolist(), found.losses.tokens.tolist()).value
            self._events.metrics(step, {"perplexity": value})
        if any(scores.BY_NAME[name].needs == scores.CLASSES for name in names):
            found.classes = forwarding.classes(loaded.model).tolist()
        if isinstance(encoder, ChatEncoder) and any(scores.BY_NAME[name].needs == scores.ANSWERS for name in names):
            found.answers = self._write(loaded, samples, encoder)
        if self._job.suites:
            self._look()
            found.suites = suites.run(self._job.suites, loaded.model, loaded.tokenizer)
        self._done += 1
        self._tell(0.0, always=True)
        return found

    def _write(self, loaded: Loaded, samples: Samples, encoder: ChatEncoder) -> list[str]:
        """The text of an answer to each sample."""
        tokenizer, answering = loaded.tokenizer, self._job.answering
        special = set(tokenizer.all_special_ids)
        ends = end_tokens(
            [loaded.config.eos_token_id, loaded.model.generation_config.eos_token_id, tokenizer.eos_token_id],
            Prompts(encoder.template.source, encoder.template.special_tokens),
            lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
            lambda token: token in special,
        )
        writing = Writing(Sampling(**dict(answering.sampling)), answering.max_tokens, ends)
        answers = write_answers(loaded.model, samples.prompts, writing, self._counting(answering.max_tokens))
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
        return [_cut(text, answering.stop).strip() for text in texts]

    def _embedder(self, loaded: Loaded) -> Embedder:
        """The model that embeds sentences; that of the base model only where no other is there."""
        directory = self._job.embedding_dir or installed_directory()
        if directory is not None:
            return SentenceModel(directory, loaded.device)
        self._events.log(
            "no sentence-embedding model is installed: similarity and coherence come from the base model's hidden "
            "states, which tell meanings apart less well; name an embedding_model",
            WARNING,
        )
        return HiddenStates(loaded.model, loaded.tokenizer, loaded.device)

    def _measure(
        self,
        found: Found,
        samples: Samples,
        names: Sequence[str],
        labels: Sequence[str],
        embedder: Embedder | None,
    ) -> Scored:
        """The scores of a checkpoint, told as metrics of its step."""
        self._look()
        measured: dict[str, Measurement] = {}
        if found.losses is not None:
            measured["perplexity"] = perplexity("perplexity", found.losses.sums.tolist(), found.losses.tokens.tolist())
        if found.answers:
            measured |= measure_answers(names, samples.questions, found.answers, embedder)
        if found.classes:
            measured |= _class_scores(names, samples.classes, found.classes, len(labels))
        ordered = {name: measured[name] for name in names if name in measured}
        card = Card(found.step, ordered, found.base_model)
        self._events.metrics(found.step, {name: item.value for name, item in ordered.items()})
        return Scored(card, found.answers, found.classes, found.suites)

    def _report(
        self,
        scored: Sequence[Scored],
        samples: Samples,
        names: Sequence[str],
        labels: Sequence[str],
        embedder: Embedder | None,
    ) -> None:
        job = self._job
        shared = [name for name in names if all(name in item.card.measurements for item in scored)]
        shares = scores.shares(shared, job.weights)
        advice = recommend([item.card for item in scored], shares, seed=job.choice.seed)
        name = embedder.name if embedder else ""
        content = content_of(job, scored, samples, shares=shares, advice=advice, labels=labels, embedder=name)
        for item in content["checkpoints"]:
            if item["total"] is not None:
                self._events.metrics(item["step"], {"total": item["total"]})
        self._events.phase("writing the report")
        write_report(job.output_dir, content)
        self._events.log(advice.words.en)
        self._events.done(path=job.output_dir, step=advice.step)

    def _look(self) -> None:
        """Raises Stopping when the worker has asked for an end."""
        if self._stop.requested:
            raise Stopping

    def _counting(self, most: int) -> Callable[[], None]:
        """What is called for each token of a batch of answers."""
        written = 0

        def between() -> None:
            nonlocal written
            self._look()
            self._tell(min(1.0, written / most))
            written += 1

        return between

    def _tell(self, share: float, *, always: bool = False) -> None:
        """Tells how far this is: a share of the checkpoint that is being scored."""
        done = self._done + share
        samples = self._samples
        self._events.progress(step=int(done * samples), total_steps=self._total * samples, epoch=done, always=always)


def _fits(name: str, samples: Samples) -> bool:
    """Whether samples have what a score is computed from."""
    needs = scores.BY_NAME[name].needs
    if needs == scores.ANSWERS:
        return bool(samples.questions)
    return needs != scores.CLASSES or all(number >= 0 for number in samples.classes)


def _class_scores(
    names: Sequence[str], actual: Sequence[int], told: Sequence[int], classes: int
) -> Mapping[str, Measurement]:
    right = [float(one == other) for one, other in zip(actual, told, strict=True)]
    found = {
        "accuracy": mean("accuracy", right),
        "f1": macro_f1("f1", actual, told, classes),
        "confusion": mean("confusion", [1 - value for value in right]),
    }
    return {name: measurement for name, measurement in found.items() if name in names}


def _cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some texts that end it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
