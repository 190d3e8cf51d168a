"""What several files of tests ask an experiment."""

import numpy as np

from circuitlab.metrics import Metric
from circuitlab.patching.experiment import Experiment


def clean_and_empty(experiment: Experiment, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """A metric of the clean runs and of the empty circuit, per example."""
    found = experiment.measured_by(metric)
    return found.clean, found.empty
