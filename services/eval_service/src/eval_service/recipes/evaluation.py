"""Scores checkpoints of one base model on the same samples, recommends one, and writes the report."""

import shutil
from collections.abc import Mapping, Sequence

from eval_service import scores
from eval_service.recipes.job import Job
from eval_service.recipes.model import Loaded, load
from eval_service.recipes.progress import Progress, Stopping
from eval_service.recipes.samples import Reader, Samples
from eval_service.recipes.scorer import Found, Scorer
from eval_service.recipes.variants import Switch
from eval_service.recommendation import Recommendation, recommend
from eval_service.report.content import Scored, content_of
from eval_service.report.files import write_report
from eval_service.scoring.answers import measure_answers, needs_embedder
from eval_service.scoring.embeddings import Embedder, HiddenStates, SentenceModel, installed_directory
from eval_service.scoring.measurements import Measurement, macro_f1, mean, perplexity
from eval_service.scoring.totals import Card
from modelkit.encoded import RowEncoder
from modelkit.loading import quieten
from workerkit.child.errors import OutputExists
from workerkit.child.events import WARNING, EventWriter
from workerkit.child.stopping import StopRequest


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
        self._job, self._events = job, events
        self._total = len(job.candidates) + job.include_base_model
        self._progress = Progress(events, stop, self._total)
        self._rooms = [job.answering.max_tokens]  # tokens that answers can have

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
        wanted = job.scores or tuple(scores.measurable(job.learnt.objective))
        names = [name for name in wanted if _fits(name, samples)]
        events.log(
            f"{self._total} checkpoints on {len(samples)} of {samples.rows} {samples.split} rows: {', '.join(names)}"
        )
        found = self._score_all(loaded, samples, encoder, names)
        labels = loaded.labels
        embedder = self._embedder(loaded) if needs_embedder(names) and samples.questions else None
        del loaded
        events.phase("comparing answers")
        with self._progress.silent_step():
            scored = [self._measure(item, samples, names, labels, embedder) for item in found]
            advice = self._report(scored, samples, labels, embedder)
        events.log(advice.words.en)
        events.done(path=job.output_dir, step=advice.step)

    def _score_all(self, loaded: Loaded, samples: Samples, encoder: RowEncoder, names: Sequence[str]) -> list[Found]:
        """What each checkpoint makes of the samples; the model is the base model again at the end."""
        job, found = self._job, []
        self._progress.start()
        switch = Switch(loaded.model, job.model_dir)
        scorer = Scorer(job, loaded, samples, encoder, names, self._progress)
        self._tell_limit(scorer)
        if job.include_base_model:
            self._events.phase("scoring the base model")
            found.append(self._scored(scorer.score(0, base_model=True)))
        for candidate in job.candidates:
            self._events.phase(f"scoring checkpoint {candidate.step}")
            switch.to(candidate.directory)
            found.append(self._scored(scorer.score(candidate.step)))
        switch.to_base()
        return found

    def _tell_limit(self, scorer: Scorer) -> None:
        """Remembers how long answers can be, and warns when that is less than was asked for."""
        asked = self._job.answering.max_tokens
        rooms = self._rooms = scorer.rooms() or self._rooms
        if min(rooms) < asked:
            self._events.log(
                f"{sum(room < asked for room in rooms)} of {len(rooms)} answers have room for fewer than {asked} "
                f"tokens, one for {min(rooms)}: their prompts leave no more of the model's context; leave long "
                "rows out, or ask for fewer max_tokens",
                WARNING,
            )

    def _scored(self, found: Found) -> Found:
        """Tells what is known of a checkpoint before its answers are compared."""
        if found.losses is not None:
            self._events.metrics(found.step, {"perplexity": _perplexity(found).value})
        self._progress.next()
        return found

    def _embedder(self, loaded: Loaded) -> Embedder:
        """The model that embeds sentences; that of the base model only where no other is there."""
        directory = self._job.embedding_dir or installed_directory()
        if directory is not None:
            return SentenceModel(directory, loaded.device, between=self._progress.heed)
        self._events.log(
            "no sentence-embedding model is installed: similarity and coherence come from the base model's hidden "
            "states, which tell meanings apart less well; name an embedding_model",
            WARNING,
        )
        return HiddenStates(loaded.model, loaded.tokenizer, loaded.device, self._progress.heed)

    def _measure(
        self, found: Found, samples: Samples, names: Sequence[str], labels: Sequence[str], embedder: Embedder | None
    ) -> Scored:
        """The scores of a checkpoint, told as metrics of its step."""
        self._progress.heed()
        measured: dict[str, Measurement] = {}
        if found.losses is not None:
            measured["perplexity"] = _perplexity(found)
        if found.answers:
            measured |= measure_answers(names, samples.questions, found.answers, embedder)
        if found.classes:
            measured |= _class_scores(names, samples.classes, found.classes, len(labels))
        ordered = {name: measured[name] for name in names if name in measured}
        self._events.metrics(found.step, {name: item.value for name, item in ordered.items()})
        self._progress.compared()
        return Scored(Card(found.step, ordered, found.base_model), found.answers, found.classes, found.suites)

    def _report(
        self, scored: Sequence[Scored], samples: Samples, labels: Sequence[str], embedder: Embedder | None
    ) -> Recommendation:
        """Writes the report with its recommendation."""
        job = self._job
        shares = scores.shares(scored[0].card.measurements, job.weights) if scored else {}
        cards = [item.card for item in scored]
        advice = recommend(cards, shares, seed=job.choice.seed, between=self._progress.heed)
        name = embedder.name if embedder else ""
        content = content_of(
            job,
            scored,
            samples,
            shares=shares,
            advice=advice,
            labels=labels,
            embedder=name,
            rooms=self._rooms,
        )
        for item in content["checkpoints"]:
            if item["total"] is not None:
                self._events.metrics(item["step"], {"total": item["total"]})
        self._events.phase("writing the report")
        self._progress.heed()
        write_report(job.output_dir, content)
        return advice


def _fits(name: str, samples: Samples) -> bool:
    """Whether samples have what a score is computed from."""
    needs = scores.BY_NAME[name].needs
    if needs == scores.ANSWERS:
        return bool(samples.questions)
    return needs != scores.CLASSES or all(number >= 0 for number in samples.classes)


def _perplexity(found: Found) -> Measurement:
    assert found.losses is not None
    return perplexity("perplexity", found.losses.sums.tolist(), found.losses.tokens.tolist())


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
