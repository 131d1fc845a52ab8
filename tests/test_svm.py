"""The SVMs of Pascal VOC: folds, costs, what is difficult, few images; the record, and runs that are continued."""

import signal
import statistics
import time
from itertools import chain
from unittest.mock import patch

import numpy as np
import pytest
import torch
from devkits import shrink, write_devkit
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC
from toys import bench
from trainings import start
from vocs import generate_few

from probes import features, svm
from probes.svm import SVM, OneClass, draw_few, draw_folds, fit, learnable, normalise, report, report_few, turn
from results.store import Store
from zoo.seeds import numpy_generator
from zoo.state import Unkept
from zoo.views import Stretch
from zoo.voc.average_precision import classification_scores
from zoo.voc.devkit import Voc2007, Voc2012

COUNTS = {"train": 40, "val": 24, "trainval": 64, "test": 24}  # enough that three folds of train have every class

RANDOM = ("--checkpoint", "random-alexnet32@0")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"), COUNTS)


@pytest.fixture
def small(monkeypatch):
    """Few costs and features, so that a run takes seconds."""
    monkeypatch.setattr(svm, "COSTS", (0.1, 1.0, 100.0))
    monkeypatch.setattr(svm, "SHOTS", (1, 2, 64))
    monkeypatch.setattr(svm, "MOST", 256)


@pytest.fixture
def run(small, few, tmp_path):
    """Run the command; its exit code and the records."""

    def start_in(*words, folder=tmp_path):
        places = ("--cache", str(folder / "cache"))
        code = start(SVM, folder, *RANDOM, *places, *words, dataset=few)
        return code, Store(folder / "records").records()

    return start_in


@pytest.fixture
def toy():
    """A class of 20 rows among 60, told apart by chance and a little more, and 30 rows to rank."""
    rng = np.random.default_rng(0)
    positive = rng.permutation(np.arange(60) < 20)
    rows = normalise(rng.normal(size=(60, 8)) + 0.5 * positive[:, None])
    return OneClass("dog", rows, positive, normalise(rng.normal(size=(30, 8)) + 0.2))


# By the definitions.


def test_features_are_divided_by_their_length_and_a_little():
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    rows[2], rows[3] = 0, 1e-6
    for row, found in zip(rows.astype(np.float64), normalise(rows)):
        length = sum(value**2 for value in row) ** 0.5
        np.testing.assert_allclose(found, [value / (length + 1e-5) for value in row], rtol=1e-12)
    assert normalise(rows).dtype == np.float64
    assert (normalise(rows)[2] == 0).all()


@given(st.lists(st.booleans(), min_size=1, max_size=50), st.integers(0, 99))
def test_folds_are_a_partition_with_as_many_positives_each(flags, seed):
    positive = np.array(flags)
    folds = draw_folds(positive, np.random.default_rng(seed))
    assert folds.shape == positive.shape
    for kind in (positive, ~positive):
        counts = [(folds[kind] == fold).sum() for fold in range(3)]
        assert sum(counts) == kind.sum()
        assert max(counts) - min(counts) <= 1


def test_folds_are_drawn():
    positive = np.arange(60) < 20
    drawn = [draw_folds(positive, numpy_generator(seed, "folds", "dog")).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("cost", [0.01, 1.0, 1000.0])
def test_a_fit_is_at_the_minimum_of_the_loss(toy, cost):
    machine = fit(toy.rows, toy.positive, cost)
    x = np.c_[toy.rows, np.ones(len(toy.rows))]  # liblinear's bias is a weight like the others
    w = np.r_[machine.coef_[0], machine.intercept_]
    sign = np.where(toy.positive, 1, -1)

    def gradient(w):
        total = w.copy()
        for row, y in zip(x, sign):
            total -= 2 * cost * (2 if y == 1 else 1) * max(0, 1 - y * row @ w) * y * row
        return total

    assert np.linalg.norm(gradient(w)) <= 1e-4 * np.linalg.norm(gradient(np.zeros_like(w)))


def test_fewer_directions_give_the_same_svm():
    """Of 40 images with 300 features, 40 directions; what is as long as wide is left alone."""
    rng = np.random.default_rng(0)
    rows, queries, positive = (
        normalise(rng.normal(size=(40, 300))),
        normalise(rng.normal(size=(30, 300))),
        np.arange(40) < 9,
    )
    fewer, turned = turn(rows, queries)
    assert (fewer.shape, turned.shape) == ((40, 40), (30, 40))
    for cost in (0.1, 10.0):
        wanted = fit(rows, positive, cost).decision_function(queries)
        np.testing.assert_allclose(fit(fewer, positive, cost).decision_function(turned), wanted, atol=2e-3)
    longer = rows.T
    assert turn(longer, longer)[0] is longer


def test_the_cost_and_the_scores_are_those_of_loops_over_scikit_learn(toy):
    folds = draw_folds(toy.positive, numpy_generator(7, "folds", "dog"))
    labels = np.where(toy.positive, 1, -1)

    def learn(cost, mask, rows):
        machine = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, max_iter=2000)
        return machine.fit(toy.rows[mask], labels[mask]).decision_function(rows)

    tried = {}
    for cost in (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000):
        found = [
            average_precision_score(labels[folds == fold] == 1, learn(cost, folds != fold, toy.rows[folds == fold]))
            for fold in range(3)
        ]
        tried[cost] = 100 * np.mean(found)
    best = max(tried, key=tried.get)
    solved = toy.solve(7, {}, Unkept())
    assert 0.01 < best == solved.cost < 1000
    assert solved.tried == {f"{cost:g}": pytest.approx(value, abs=6e-4) for cost, value in tried.items()}
    np.testing.assert_allclose(solved.scores, learn(best, np.full(60, True), toy.queries))
    assert solved.unconverged == 0
    assert solved.few.shape == (0, 5, 30)


def test_of_equal_costs_the_smallest_is_taken(toy):
    with patch.object(OneClass, "validate", lambda self, out, cost: (50.0 + (cost in (2.0, 15.0)), 0)):
        assert toy.solve(0, {}, Unkept()).cost == 2.0


def test_fits_that_do_not_converge_are_counted_and_not_printed(run, toy, recwarn, monkeypatch):
    assert fit(toy.rows, toy.positive, 1.0).max_iter == svm.ITERATIONS == 2000
    monkeypatch.setattr(svm, "ITERATIONS", 1)
    code, (record,) = run("--low-shot")
    assert code == 0
    fits = 3 * 3 + 1 + 2 * 5  # folds x costs, all images, two numbers of few
    assert set(record.details["unconverged"].values()) == {fits}
    assert not [warning for warning in recwarn if "onverge" in str(warning.message)]


def test_maps_are_pooled_to_the_sizes_of_the_paper():
    maps = {
        "AlexNet": [(96, 55, 9600), (256, 27, 9216), (384, 13, 9600), (384, 13, 9600), (256, 13, 9216)],
        "ResNet-50": [(256, 56, 9216), (512, 28, 8192), (1024, 14, 9216), (2048, 7, 8192)],
    }
    for channels, side, wanted in chain.from_iterable(maps.values()):
        blank = torch.empty((1, channels, side, side), device="meta")
        assert features.pool_to(blank, svm.MOST).shape == (1, wanted)


# Few images.


def test_a_draw_has_so_many_of_both():
    positive = np.arange(50) % 5 == 0
    for k, others in ((1, 9), (4, 36), (10, 90)):
        ids = draw_few(positive, k, others, np.random.default_rng(0))
        assert len(set(ids.tolist())) == len(ids) == k + min(others, 40)
        assert positive[ids].sum() == k
        assert ids.tolist() == sorted(ids)
    draws = {tuple(draw_few(positive, 2, 18, numpy_generator(0, "low-shot", "dog", 2, n))) for n in range(5)}
    assert len(draws) == 5


def test_few_images_by_hand(toy):
    solved = toy.solve(3, {1: 9, 4: 36}, Unkept())
    assert solved.few.shape == (2, 5, 30)
    for number, k in enumerate((1, 4)):
        for draw in range(5):
            ids = draw_few(toy.positive, k, 9 * k, numpy_generator(3, "low-shot", "dog", k, draw))
            expected = fit(toy.rows[ids], toy.positive[ids], solved.cost).decision_function(toy.queries)
            np.testing.assert_array_equal(solved.few[number, draw], expected)
    plain = toy.solve(3, {}, Unkept())
    assert (plain.scores == solved.scores).all()


def test_the_metrics_of_few_images_are_means_over_draws():
    rng = np.random.default_rng(0)
    presence = rng.choice([-1, 0, 1], (30, 2))
    few = rng.normal(size=(2, 2, 5, 30))  # classes, numbers of shots, draws, images
    found = {name: svm.Solved(1.0, {}, 0, rng.normal(size=30), scores) for name, scores in zip(("cat", "dog"), few)}
    metrics, details = report_few(found, presence, (1, 8))
    assert list(metrics) == [f"mAP_{form}_k{k}" for k in (1, 8) for form in ("voc07", "area", "step")]
    for name, mean in metrics.items():
        form, _, k = name.rpartition("_k")
        each = [classification_scores(few[:, (1, 8).index(int(k)), n].T, presence, ["cat", "dog"])[0] for n in range(5)]
        values = [one[form] for one in each]
        assert mean == pytest.approx(np.mean(values))
        assert details[name] == {"std": pytest.approx(np.std(values, ddof=1)), "draws": values}


def test_low_shot_is_told_beside_the_usual_numbers(run):
    _, (usual,) = run()
    code, records = run("--low-shot")
    assert code == 0
    (record,) = (record for record in records if record.key != usual.key)
    assert (usual.protocol, record.protocol) == ("voc07-svm@1", "voc07-svm@1, low-shot")
    assert usual.metrics.items() < record.metrics.items()
    assert set(record.metrics) - set(usual.metrics) == set(record.details["low_shot"])
    assert {name.rpartition("_k")[2] for name in record.details["low_shot"]} == {"1", "2"}
    (reason,) = record.details["low_shot_skipped"].items()
    assert reason[0] == "k64"
    assert reason[1].startswith("only ")
    assert "low_shot" not in usual.details
    for name, told in record.details["low_shot"].items():
        assert len(told["draws"]) == 5
        assert record.metrics[name] == pytest.approx(statistics.mean(told["draws"]))


def test_the_rarest_class_says_which_numbers_are_skipped():
    presence = np.full((200, 2), -1)
    presence[:100, 0], presence[:33, 1], presence[33:50, 1] = 1, 1, 0
    shots, skipped = svm.drawable(presence, ["cat", "dog"])
    assert shots == (1, 2, 4, 8, 16, 32)
    assert skipped == dict.fromkeys(("k64", "k96"), "only 33 images show the class dog")


# What a run is of.


@pytest.fixture
def probed(few, tmp_path, small):
    """probe(training, evaluation): the outcome on random features, of images that show this."""
    held = bench(tmp_path, few)
    rng = np.random.default_rng(1)
    rows = {split: rng.normal(size=(count, 12)) for split, count in {"trainval": 48, "test": 24}.items()}

    def probe(training, evaluation, seed=0):
        with patch.object(SVM, "load", lambda self, bench, split, layers: {"conv5": rows[split]}):
            names = list("abc")[: training.shape[1]]
            return SVM(layer="conv5", seed=seed, low_shot=True).probe(names, training, evaluation, held)

    return probe


def draw_presence(count, seed):
    return np.random.default_rng(seed).choice([-1, 0, 1], (count, 3), p=[0.5, 0.1, 0.4]).astype(np.int8)


def test_what_is_difficult_is_negative_in_training_and_not_in_the_test(probed):
    training, evaluation = draw_presence(48, 0), draw_presence(24, 1)
    assert (training == 0).any()
    assert (evaluation == 0).any()
    usual = probed(training, evaluation)
    negative = probed(np.where(training == 0, -1, training), evaluation)
    assert negative.metrics == usual.metrics
    assert negative.details == usual.details
    assert probed(training, np.where(evaluation == 0, -1, evaluation)).metrics != usual.metrics


def test_the_number_is_that_of_the_scores(probed):
    kept = {}

    def keeping(found, presence):
        kept.update(found)
        return report(found, presence)

    evaluation = draw_presence(24, 1)
    with patch.object(svm, "report", keeping):
        outcome = probed(draw_presence(48, 0), evaluation)
    scores = np.stack([kept[name].scores for name in "abc"], 1)
    metrics, details = classification_scores(scores, evaluation, list("abc"))
    assert metrics.items() <= outcome.metrics.items()
    assert details.items() <= outcome.details.items()
    for at, name in enumerate("abc"):
        counted = evaluation[:, at] != 0
        by_sklearn = average_precision_score(evaluation[counted, at] == 1, scores[counted, at])
        assert outcome.details["AP_step"][name] == pytest.approx(100 * by_sklearn)
    assert outcome.details["C"] == {name: kept[name].cost for name in "abc"}


def test_the_seed_draws_folds_and_few_images(probed):
    shown = draw_presence(48, 0), draw_presence(24, 1)
    usual, other = probed(*shown), probed(*shown, seed=1)
    assert usual.details["held_out_AP_step"] != other.details["held_out_AP_step"]
    assert usual.metrics["mAP_step_k1"] != other.metrics["mAP_step_k1"]


def test_the_record(run, few):
    code, (record,) = run()
    assert code == 0
    assert set(record.metrics) == {"mAP_voc07", "mAP_area", "mAP_step"}
    assert all(0 < value < 100 for value in record.metrics.values())
    assert (record.protocol, record.dataset["protocol"], record.dataset["name"]) == ("voc07-svm@1", "split", "minivoc")
    assert record.settings["layer"] == "conv5"
    assert set(record.details["C"]) == set(few.classes)
    assert all(set(tried) == {"0.1", "1", "100"} for tried in record.details["held_out_AP_step"].values())
    for name, tried in record.details["held_out_AP_step"].items():
        assert tried[f"{record.details['C'][name]:g}"] == max(tried.values())


@pytest.mark.parametrize("words", [(), ("--images", "train-val"), ("--layer", "conv2")])
def test_each_setting_gives_another_number(words, run):
    _, (usual,) = run()
    code, records = run(*words)
    assert code == 0
    others = [record for record in records if record.key != usual.key]
    assert len(others) == bool(words)
    assert all(record.metrics != usual.metrics for record in others)
    if "train-val" in words:
        assert others[0].protocol == "voc07-svm@1, train-val"


def test_a_layers_number_does_not_depend_on_the_others_nor_on_threads(run, tmp_path):
    code, together = run("--layer", "all", "--threads", "3", folder=tmp_path / "together")
    assert code == 0
    found = {record.settings["layer"]: record for record in together}
    assert sorted(found) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    for layer in ("conv1", "conv4"):
        _, (alone,) = run("--layer", layer, folder=tmp_path / layer)
        assert (alone.key, alone.metrics, alone.details) == (
            found[layer].key, found[layer].metrics, found[layer].details
        )  # fmt: skip


@pytest.mark.parametrize("calls", [1, 25, 150])
def test_a_run_that_was_stopped_continues_to_the_same_bits(calls, run, tmp_path):
    _, (whole,) = run("--low-shot")
    left, before = [calls], svm.fit

    def stopping(*given):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return before(*given)

    saved = ("--low-shot", "--save-every", "0")
    with patch.object(svm, "fit", stopping):
        assert run(*saved, folder=tmp_path / "stopped") == (130, [])
    assert list((tmp_path / "stopped").rglob("state-*.pt")) or calls == 1
    fitted = []
    with patch.object(svm, "fit", lambda *given: fitted.append(1) or before(*given)):
        code, (record,) = run(*saved, folder=tmp_path / "stopped")
    assert code == 0
    assert (record.metrics, record.details) == (whole.metrics, whole.details)
    assert len(fitted) <= 10 * (3 * 3 + 1 + 2 * 5) - calls + 1  # the interrupted one twice
    assert not list((tmp_path / "stopped").rglob("state-*.pt"))


def test_sigterm_is_obeyed_after_the_present_fits(run, tmp_path):
    before, left = svm.fit, [7]

    def stopping(*given):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)  # is the main thread's
        if left[0] <= 0:
            time.sleep(0.1)  # so that no class is done before the main thread has it
        return before(*given)

    with patch.object(svm, "fit", stopping), pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 143
    assert list(tmp_path.rglob("* in conv5/state-*.pt"))


def test_images_are_stretched_and_sets_without_a_split_are_read(few, tmp_path):
    held = bench(tmp_path, few)
    for split in ("val", "trainval"):
        found = features.load(held, split, ["conv2"], Stretch(32), 300)["conv2"]
        pixels = few.read(split).materialise(32).pixels
        expected = features.pool_to(held.maps(pixels, ["conv2"])["conv2"], 300)
        assert found.shape == (len(few.ids(split)), 64 * 2 * 2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    limited = bench(tmp_path, few, limit=6)
    found = features.load(limited, "val", ["conv2"], Stretch(32), 300)["conv2"]
    np.testing.assert_allclose(found, features.load(held, "val", ["conv2"], Stretch(32), 300)["conv2"][::4], atol=1e-5)


def test_a_smoke_run_leaves_out_the_classes_that_are_too_rare(run, capsys):
    assert run("--limit", "12") == (0, [])
    assert "a smoke run on 12 images" in capsys.readouterr().out
    assert run("--limit", "3") == (2, [])
    told = capsys.readouterr().err
    assert "among 3 images no class is shown by 3" in told
    assert "a larger --limit, or none" in told


def test_classes_that_can_be_learned():
    presence = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [-1, -1, 1], [-1, -1, -1], [-1, -1, -1]])
    assert learnable(presence).tolist() == [True, False, False]


# What cannot be.


def test_another_data_set_is_refused(tmp_path, capsys):
    assert start(SVM, tmp_path, *RANDOM) == 2
    told = capsys.readouterr().err
    assert "probes.svm ranks the images of a devkit of Pascal VOC, and digits is none" in told
    assert "--dataset minivoc (or voc2007, voc2012, minivoc-fashion), or python -m probes.linear" in told


def test_a_class_that_is_too_rare_for_the_folds_is_named(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch, Voc2007)
    kit = Voc2007(write_devkit(tmp_path))
    assert start(SVM, tmp_path, *RANDOM, "--dataset", "voc2007", dataset=kit) == 2
    told = capsys.readouterr().err
    assert "3 folds need 3 images that show the class aeroplane, and 3 that do not" in told
    assert "trainval of voc2007: 2 of 6 images show it" in told
    assert "unpack it again" in told


def test_voc2012_has_no_test_images(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch, Voc2012)
    kit = Voc2012(write_devkit(tmp_path, "2012"))
    words = (*RANDOM, "--dataset", "voc2012", "--images", "trainval-test")
    assert start(SVM, tmp_path, *words, dataset=kit) == 2
    assert "voc2012 has no set 'test' of Main\n  try: --images train-val\n" in capsys.readouterr().err
    assert SVM(**SVM.presets["voc2012"]).protocol_id(kit) == "voc07-svm@1"


def test_flags_that_cannot_be(tmp_path, few, capsys):
    assert start(SVM, tmp_path, *RANDOM, "--layer", "cov3", dataset=few) == 2
    assert "did you mean 'conv3'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        start(SVM, tmp_path, *RANDOM, "--images", "test-trainval", dataset=few)
    assert ended.value.code == 2
    assert "trainval-test" in capsys.readouterr().err
