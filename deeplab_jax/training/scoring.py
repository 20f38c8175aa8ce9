"""Evaluate a run's current state on the evaluation split."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deeplab_jax.evaluation import pictures
from deeplab_jax.evaluation import scores as report
from deeplab_jax.evaluation.evaluate import list_images, score
from deeplab_jax.evaluation.inference import Evaluator
from deeplab_jax.training.begin import Setup
from deeplab_jax.training.data import Batch, Data
from deeplab_jax.training.state import TrainState, inference_variables

STRIPS = 4  # comparison images logged per evaluation
# A function of the state that returns the scores, from `scores.summary`, and this process's first comparison images.
Evaluate = Callable[[TrainState], tuple[dict[str, Any], list[np.ndarray]]]


def make_evaluate(setup: Setup, data: Data, should_stop: Callable[[], bool], beat: Callable[[], None]) -> Evaluate:
    """Return a function that evaluates a state and returns the scores and this process's first comparison images.

    The evaluation is compiled only once per run. It raises StoppedError if `should_stop` returns True before its last batch.
    """
    config = setup.config
    evaluator = Evaluator(config, setup.mesh)

    def evaluate(state: TrainState) -> tuple[dict[str, Any], list[np.ndarray]]:
        strips: list[np.ndarray] = []

        def collect_strips(batch: Batch, rows: Sequence[int], predictions: jax.Array) -> None:
            beat()
            chosen = rows[: STRIPS - len(strips)]
            if chosen:
                for each in list_images(batch, chosen, predictions):
                    assert each.label is not None  # a run's evaluation split has labels
                    strips.append(pictures.draw_comparison(each.image, each.label, each.prediction, config.labels))

        totals = score(evaluator, inference_variables(state), data.eval_batches(), collect_strips, should_stop)
        return report.summary(totals, config.labels), strips

    return evaluate
