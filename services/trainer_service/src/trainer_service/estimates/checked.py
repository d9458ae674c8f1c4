"""Estimates of a specification that was checked."""

import logging

from servicekit.errors import Problem
from trainer_service.checks import CheckedSpec
from trainer_service.estimates.advice import problems
from trainer_service.estimates.estimator import Estimate, Estimator
from tunesmith.task.v1 import spec_pb2
from workerkit.child.errors import InvalidJob

logger = logging.getLogger(__name__)


def estimate_checked(
    estimator: Estimator,
    spec: spec_pb2.FinetuneSpec,
    checked: CheckedSpec,
    *,
    devices: str | None = None,
    samples: bool = True,
) -> Estimate | None:
    """As Estimator.estimate; None without a model or data, or when the check found them unreadable."""
    if checked.model_dir is None or checked.dataset is None:
        return None
    try:
        return estimator.estimate(
            spec,
            checked.model_dir,
            checked.dataset,
            checked.rows,
            output_dir=checked.output_dir,
            devices=devices,
            samples=samples,
        )
    except (InvalidJob, ValueError, OSError) as error:
        logger.warning("%s has no estimate: %s", checked.model_dir, error)
        return None


def submit_problems(estimator: Estimator, spec: spec_pb2.FinetuneSpec, checked: CheckedSpec) -> list[Problem]:
    """Why a training cannot succeed on this machine although nothing is wrong with what it asks for."""
    estimate = estimate_checked(estimator, spec, checked, samples=False)
    return [] if estimate is None else problems(estimate)
