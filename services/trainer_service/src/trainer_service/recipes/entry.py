"""Runs one job in this process, or in several that it forks; whatever happens ends as one last event."""

import os
from pathlib import Path

from trainer_service.recipes import ranks
from trainer_service.recipes.config import Job
from trainer_service.recipes.failures import OUTLOOK
from trainer_service.recipes.registry import Train, recipe_for
from workerkit.child import entry
from workerkit.child.events import EventWriter
from workerkit.child.stopping import StopRequest


def run_job(directory: Path, descriptor: int | None = None) -> int:
    """Trains the job in a directory; 0 when it is done or stopped, 1 after an error event.

    Events go to the descriptor, else to the one that TUNESMITH_EVENTS_FD names, else to standard output.
    """
    stop = entry.prepare()
    rank = ranks.own_rank()
    events = EventWriter(None if rank else entry.events_descriptor(descriptor))
    try:
        job = Job.load(directory)
        events.log_level = job.finetune.training.log_level
        train = recipe_for(job)
        size = processes(job, events) if rank is None else 1
    except Exception as error:  # noqa: BLE001 - it becomes the error event
        return entry.fail(error, events, OUTLOOK)
    if size > 1:
        return run_ranks(size, job, train, events, stop)
    return train_here(job, train, events, stop, errors=events)


def run_ranks(size: int, job: Job, train: Train, events: EventWriter, stop: StopRequest) -> int:
    """Trains in several processes; the first of them writes the events, the first error of any is told."""
    silent = EventWriter(None)

    def rank_main(rank: int, error_file: int) -> int:
        stop.listen()
        return train_here(job, train, silent if rank else events, stop, errors=EventWriter(error_file))

    folder = job.work_dir / "ranks"
    code = ranks.run(size, rank_main, folder)
    if code and (error := ranks.first_error(folder)):
        events.repeat(error)
    return 1 if code else 0


def train_here(job: Job, train: Train, events: EventWriter, stop: StopRequest, *, errors: EventWriter) -> int:
    """Trains in this process."""
    from trainer_service.recipes.world import World

    try:
        world = World.join()
        train(job, events, stop, world)
        world.leave()
    except Exception as error:  # noqa: BLE001 - it becomes the error event
        return entry.fail(error, errors, OUTLOOK)
    return 0


def processes(job: Job, events: EventWriter) -> int:
    """How many processes train: one for each GPU that is named, or as many as the job asks for on a CPU."""
    import torch

    named = [device for device in job.cuda_visible_devices.split(",") if device]
    if named:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.cuda_visible_devices
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named and not present:
        events.log(f"CUDA devices {job.cuda_visible_devices} are not on this machine; training on the CPU")
        return 1
    if len(named) > present:
        events.log(f"of the CUDA devices {job.cuda_visible_devices} only {present} are on this machine")
    return max(1, min(len(named), present)) if present else job.processes
