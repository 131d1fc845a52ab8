"""A linear SVM for each class of Pascal VOC on frozen features: the average precision of ranking images by class.

    python -m probes.svm                           the deepest conv layer of the reference checkpoint, on minivoc
    python -m probes.svm --dataset voc2007 --checkpoint NAME --layer all
    python -m probes.svm --low-shot                further SVMs, of 1, 2, 4 … 96 images that show the class

An image is stretched to the checkpoint's size, a layer pooled to at most 9600 features, and these divided by their
length. A class's cost C is chosen by 3-fold cross-validation on the training images; then its SVM is trained on all
of them. Where a class is difficult to see, the image is one without it in training, and not counted in the test.

Low-shot: k images with the class and as many for each of the others without it, five draws, mean; C stays that of
all training images, so that the test images choose nothing. k is left out if any class has fewer images.

A layer of voc2007 takes one processor about 90 minutes; classes are shared among --threads.

Goyal et al., "Scaling and Benchmarking Self-Supervised Visual Representation Learning", ICCV 2019.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from tqdm import tqdm

from probes import features
from results.errors import UserError
from zoo import processes
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset, spaced
from zoo.device import side_by_side
from zoo.evaluation import Evaluation
from zoo.options import Flag
from zoo.run import Outcome, Task, main
from zoo.seeds import numpy_generator
from zoo.state import State
from zoo.views import Stretch
from zoo.voc import as_devkit
from zoo.voc.average_precision import ap_step, classification_scores, curve
from zoo.voc.devkit import Devkit

MOST = 9600  # features of a layer: with it AlexNet's and ResNet-50's have the sizes of the paper, 8192 to 9600
EPSILON = 1e-5  # is added to the length that features are divided by
COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
FOLDS = 3
ITERATIONS = 2000  # most of a fit
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)  # images that show the class, of the low-shot SVMs
DRAWS = 5  # of each number of them
CPU = torch.device("cpu")


@dataclass(frozen=True)
class SVM(Task):
    """Settings; each layer gives one record."""

    name: ClassVar[str] = "probes.svm"
    version: ClassVar[int] = 1
    home: ClassVar[str] = "minivoc"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"voc2012": {"images": "train-val"}}

    layer: str = "deepest"  # a layer's name, `embedding`, `all` conv layers, or the `deepest` of them
    # learned from, evaluated on; settings are to be chosen on train-val
    images: Literal["trainval-test", "train-val"] = "trainval-test"
    low_shot: Flag = False  # further SVMs, of 1 to 96 images with the class

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """See Task.parts. UserError for what is no devkit, and a class that is too rare for the folds."""
        devkit = as_devkit(dataset, f"{self.name} ranks the images of", ", or python -m probes.linear")
        devkit.check_sets(self.images)
        training, _ = (devkit.presence(split) for split in self.splits)
        check_learnable(training, devkit, self.splits[0])
        return [replace(self, layer=layer) for layer in checkpoint.layers(self.layer)]

    @property
    def splits(self) -> tuple[str, str]:
        """The sets of images that are learned from and evaluated on."""
        training, evaluation = self.images.split("-")
        return training, evaluation

    def protocol_id(self, dataset: Dataset) -> str:
        """See Task.protocol_id."""
        usual = self.presets.get(dataset.name, {}).get("images", SVM.images)
        images = "" if self.images == usual else f", {self.images}"
        return f"voc07-svm@{self.version}{images}" + (", low-shot" if self.low_shot else "")

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        """See Task.run."""
        assert isinstance(bench.dataset, Devkit)
        training, evaluation = (shown(bench.dataset, split, bench.limit) for split in self.splits)
        kept = learnable(training) & (evaluation == 1).any(0)  # all, but in a smoke run
        if not kept.any():
            happened = f"among {len(training)} images no class is shown by {FOLDS}, and by one of those evaluated"
            raise UserError(happened, fix="a larger --limit, or none")
        names = [name for name, keep in zip(bench.dataset.classes, kept) if keep]
        for split in reversed(self.splits):
            self.load(bench, split, [part.layer for part in parts])  # here, so that all layers are of one pass
        yield from processes.each_by_first(
            lambda: (part.probe(names, training[:, kept], evaluation[:, kept], bench) for part in parts)
        )

    def load(self, bench: Evaluation, split: str, layers: Sequence[str]) -> dict[str, np.ndarray]:
        """The layers' features (N, d) of a set of images."""
        return features.load(bench, split, layers, Stretch(bench.checkpoint.preprocessing.size), MOST)

    def probe(self, names: list[str], training: np.ndarray, evaluation: np.ndarray, bench: Evaluation) -> Outcome:
        """The outcome of one layer. training (N, C), evaluation (M, C): which of these classes the images show."""
        wide = (normalise(self.load(bench, split, [self.layer])[self.layer]) for split in self.splits)
        rows, queries = turn(*wide)
        shots, skipped = drawable(training, names) if self.low_shot else ((), {})
        classes = [OneClass(name, rows, there == 1, queries) for name, there in zip(names, training.T)]

        def solve(one: OneClass) -> Solved:
            state = bench.state(f"{one.name} in {self.layer}")
            return one.solve(self.seed, {k: (len(names) - 1) * k for k in shots}, state)

        hidden = True if bench.quiet else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # is counted instead
            work = side_by_side(solve, classes, CPU)
            done = [*tqdm(work, f"SVMs of {self.layer}", len(names), disable=hidden, leave=False)]
        found = dict(zip(names, done))
        metrics, details = report(found, evaluation)
        if self.low_shot:
            few, spread = report_few(found, evaluation, shots)
            metrics, details = metrics | few, {**details, "low_shot": spread, "low_shot_skipped": skipped}
        return Outcome(self, metrics, details)


@dataclass(frozen=True)
class Solved:
    """What the SVMs of a class found."""

    cost: float
    tried: dict[str, float]  # mean AP on the folds held out, in percent, of each cost
    unconverged: int  # fits that were ended by ITERATIONS
    scores: np.ndarray  # (M,) of the images evaluated
    few: np.ndarray  # (numbers of shots, DRAWS, M)


@dataclass(frozen=True)
class OneClass:
    """One class against the rest: features (N, d) to learn from, where it is shown (N,), features (M, d) to rank."""

    name: str
    rows: np.ndarray
    positive: np.ndarray
    queries: np.ndarray

    def solve(self, seed: int, shots: dict[int, int], state: State) -> Solved:
        """What its SVMs find. shots: of each number of images that show it, how many others are drawn."""
        tried, ended = self.cross_validate(draw_folds(self.positive, numpy_generator(seed, "folds", self.name)), state)
        cost = COSTS[int(tried.argmax())]  # of equals the smallest
        scores, last = state.once("all images", lambda: self.rank(np.arange(len(self.rows)), cost))
        few, more = self.rank_few(seed, shots, cost, state)
        held = {f"{cost:g}": round(value, 3) for cost, value in zip(COSTS, tried.tolist())}
        return Solved(cost, held, ended + last + more, scores.numpy(), few)

    def cross_validate(self, folds: np.ndarray, state: State) -> tuple[np.ndarray, int]:
        """The mean AP in percent of each cost, over the folds (N,) held out; how many fits were ended."""
        held: list[tuple[float, int]] = state.part("held out", [])
        for number in state.steps("cross-validation", FOLDS * len(COSTS)):
            fold, at = divmod(number, len(COSTS))
            held.append(self.validate(folds == fold, COSTS[at]))
        found = np.array([ap for ap, _ in held]).reshape(FOLDS, len(COSTS))
        return found.mean(0), sum(ended for _, ended in held)

    def rank_few(self, seed: int, shots: dict[int, int], cost: float, state: State) -> tuple[np.ndarray, int]:
        """Scores (numbers of shots, DRAWS, M) by SVMs that learned from few images; how many fits were ended."""
        drawn: list[tuple[torch.Tensor, int]] = state.part("few images", [])
        for number in state.steps("low-shot", len(shots) * DRAWS):
            k, draw = list(shots)[number // DRAWS], number % DRAWS
            rng = numpy_generator(seed, "low-shot", self.name, k, draw)
            drawn.append(self.rank(draw_few(self.positive, k, shots[k], rng), cost))
        found = np.array([scores.numpy() for scores, _ in drawn])
        return found.reshape(len(shots), DRAWS, len(self.queries)), sum(ended for _, ended in drawn)

    def validate(self, out: np.ndarray, cost: float) -> tuple[float, int]:
        """The AP in percent on the images `out` (N,) of the SVM that learned from the others; 1 if it was ended."""
        machine = fit(self.rows[~out], self.positive[~out], cost)
        ranked = curve(machine.decision_function(self.rows[out]), self.positive[out])
        return 100 * ap_step(*ranked), ended_early(machine)

    def rank(self, ids: np.ndarray, cost: float) -> tuple[torch.Tensor, int]:
        """Scores (M,) by the SVM that learned from the images `ids`; 1 if it was ended."""
        machine = fit(self.rows[ids], self.positive[ids], cost)
        return torch.from_numpy(machine.decision_function(self.queries)), ended_early(machine)


def fit(rows: np.ndarray, positive: np.ndarray, cost: float) -> LinearSVC:
    """The SVM that tells the rows (N, d) of a class from the others: squared hinge, L2, positives count twice.

    liblinear's primal solver, which converges at every cost; the dual one, scikit-learn's choice in 2019, is ended by
    ITERATIONS on most features from C = 100 on. It also draws nothing, where the dual one has a random generator that
    all threads share; a number is given all the same, for else numpy's global generator would be asked for one.
    """
    weights = {1: 2.0, -1: 1.0}
    machine = LinearSVC(C=cost, class_weight=weights, dual=False, max_iter=ITERATIONS, random_state=0)
    return machine.fit(rows, np.where(positive, 1, -1))


def ended_early(machine: LinearSVC) -> int:
    """1 if the fit had not converged after the most iterations, else 0."""
    return int(machine.n_iter_ >= ITERATIONS)


def normalise(rows: np.ndarray) -> np.ndarray:
    """x / (‖x‖ + 1e-5) of each row, float64."""
    wide = np.array(rows, dtype=np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True) + EPSILON
    return wide


def turn(rows: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, d) to learn from and (M, d) to rank; where N < d, in the N directions that the first span."""
    if len(rows) >= rows.shape[1]:
        return rows, queries
    directions, _ = np.linalg.qr(rows.T)  # (d, N): weights are sums of rows, so nothing is lost
    return rows @ directions, queries @ directions


def draw_folds(positive: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The fold (N,) of each image; positives and the others are dealt out evenly, each in random order."""
    folds = np.empty(len(positive), dtype=np.int64)
    for kind in (positive, ~positive):
        folds[rng.permutation(np.flatnonzero(kind))] = np.arange(kind.sum()) % FOLDS
    return folds


def draw_few(positive: np.ndarray, k: int, others: int, rng: np.random.Generator) -> np.ndarray:
    """Ids of k random positives and of so many others, or of all of these if there are fewer; sorted."""
    rest = np.flatnonzero(~positive)
    chosen = [rng.choice(np.flatnonzero(positive), k, False), rng.choice(rest, min(others, len(rest)), False)]
    return np.sort(np.concatenate(chosen))


def shown(devkit: Devkit, split: str, limit: int | None) -> np.ndarray:
    """What the images of a set show, as Devkit.presence has it: of all (N, C), or of as many as the limit says."""
    presence = devkit.presence(split)
    return presence if limit is None else presence[spaced(len(presence), limit)]


def learnable(presence: np.ndarray) -> np.ndarray:
    """Of each class (C,) whether there are enough images with it, and without, that each fold has one."""
    positives = (presence == 1).sum(0)
    return np.minimum(positives, len(presence) - positives) >= FOLDS


def check_learnable(presence: np.ndarray, devkit: Devkit, split: str) -> None:
    """UserError naming the first class that cannot be learned from all images of a set."""
    for name, enough, there in zip(devkit.classes, learnable(presence), (presence == 1).sum(0)):
        if not enough:
            happened = f"{FOLDS} folds need {FOLDS} images that show the class {name}, and {FOLDS} that do not"
            fix = "a shorter list to --exclude" if devkit.excluded else devkit.mend
            raise UserError(happened, f"{split} of {devkit.name}: {there} of {len(presence)} images show it", fix)


def drawable(presence: np.ndarray, names: Sequence[str]) -> tuple[tuple[int, ...], dict[str, str]]:
    """The numbers of shots that every class has images for; of the other numbers, which class has too few."""
    positives = (presence == 1).sum(0)
    rarest, most = names[int(positives.argmin())], int(positives.min())
    skipped = {f"k{k}": f"only {most} images show the class {rarest}" for k in SHOTS if k > most}
    return tuple(k for k in SHOTS if k <= most), skipped


def report(found: dict[str, Solved], presence: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of the SVMs of all images, and details by class. presence: of the images evaluated (M, C)."""
    scores = np.stack([one.scores for one in found.values()], 1)
    metrics, details = classification_scores(scores, presence, list(found))
    chosen = {
        "C": {name: one.cost for name, one in found.items()},
        "held_out_AP_step": {name: one.tried for name, one in found.items()},
        "unconverged": {name: one.unconverged for name, one in found.items()},
    }
    return metrics, {**details, **chosen}


def report_few(
    found: dict[str, Solved], presence: np.ndarray, shots: Sequence[int]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of the low-shot SVMs, means over the draws; and their standard deviations, and each draw's."""
    scores = np.stack([one.few for one in found.values()], 3)  # (numbers of shots, DRAWS, M, C)
    metrics, details = {}, {}
    for k, draws in zip(shots, scores):
        each = [classification_scores(draw, presence, list(found))[0] for draw in draws]
        for name in each[0]:
            values = [metric[name] for metric in each]
            metrics[f"{name}_k{k}"] = statistics.mean(values)
            details[f"{name}_k{k}"] = {"std": statistics.stdev(values), "draws": values}
    return metrics, details


if __name__ == "__main__":
    main(SVM)
