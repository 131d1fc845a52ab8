"""The linear probe: chosen on train, reported as it ended, one layer's number whatever layers ride along."""

import dataclasses
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from toys import Toy, bench, photographs, random_checkpoint

from probes import features, linear
from probes.features import unpack
from probes.heads import Heads, cosine
from probes.linear import BATCH, PROTOCOLS, Linear, Measured, choose, measure, report, split_off
from probes.sources import Cached, Online
from results.errors import RunFailed, UserError
from zoo.datasets.digits import Digits
from zoo.datasets.folder import Folder

TOY = Toy()
SMALL = "random-alexnet32@0"


def outcomes(held, **settings):
    parts = Linear(**settings).parts(held.checkpoint, held.dataset)
    return {found.part.layer: found for found in parts[0].run(parts, held)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(photographs(tmp_path_factory.mktemp("photographs"), train=3, val=1))


# What rides along


FEATURES = pytest.mark.parametrize("most", [4096, 100])  # more than there are images, and fewer


@FEATURES
def test_small_all_is_each_layer_bit_for_bit(tmp_path, monkeypatch, most):
    """On similarities between images, and on the features themselves."""
    monkeypatch.setattr(features, "SMALL", most)
    digits = Digits()
    settings = dict(layer="all", epochs=3)
    together = outcomes(bench(tmp_path / "all", digits, "random-small_vgg@0", 150), **settings)
    assert list(together) == ["conv1", "conv2", "conv3", "conv4"]
    for layer in ("conv1", "conv3"):
        held = bench(tmp_path / layer, digits, "random-small_vgg@0", 150)
        assert Cached(held, layer).dual == {layer: most > 150}
        alone = outcomes(held, **{**settings, "layer": layer})[layer]
        assert (alone.metrics, alone.details) == (together[layer].metrics, together[layer].details)


@FEATURES
def test_light_layers_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch, most):
    monkeypatch.setattr(features, "SMALL", most)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            held = bench(tmp_path, Digits(), "random-small_vgg@0", 150)  # one cache: features do depend on it
            found.append(outcomes(held, layer="all", epochs=3))
    finally:
        torch.set_num_threads(before)
    for layer, outcome in found[0].items():
        assert (outcome.metrics, outcome.details) == (found[1][layer].metrics, found[1][layer].details)


def test_heavy_layers_are_trained_one_by_one_with_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SMALL", 100)
    held = bench(tmp_path, Digits(), "random-small_vgg@0", 150)
    settings = dict(layer="all", epochs=3)
    light, shared = outcomes(held, **settings), []
    monkeypatch.setattr(linear, "side_by_side", lambda work, parts, device: shared.extend(parts) or map(work, parts))
    monkeypatch.setattr(linear, "LIGHT", BATCH * 100 * 10 * 6)  # of a hundred features, ten classes, six rates
    heavy = outcomes(held, **settings)
    assert [part.layer for part in shared] == [layer for layer in light if Cached(held, layer).dims[layer] < 100]
    assert 0 < len(shared) < len(light) == len(heavy)
    for layer in light:
        assert heavy[layer].metrics["top1"] == pytest.approx(light[layer].metrics["top1"], abs=1)


def test_generic_all_is_each_layer_bit_for_bit_with_any_workers(tmp_path, folder):
    settings = dict(protocol="generic", epochs=2)
    together = outcomes(bench(tmp_path, folder), layer="all", **settings)
    alone = outcomes(bench(tmp_path, folder, workers=2), layer="conv4", **settings)["conv4"]
    assert alone.part == together["conv4"].part
    assert (alone.metrics, alone.details) == (together["conv4"].metrics, together["conv4"].details)


def test_deepcluster_all_is_each_layer_bit_for_bit(tmp_path, folder):
    settings = dict(protocol="deepcluster", epochs=1, crops=10)
    together = outcomes(bench(tmp_path, folder, "random-alexnet@0"), layer="all", **settings)
    alone = outcomes(bench(tmp_path, folder, "random-alexnet@0"), layer="conv3", **settings)["conv3"]
    assert (alone.metrics, alone.details) == (together["conv3"].metrics, together["conv3"].details)
    assert alone.part.protocol_id(folder) == "deepcluster@1, 1 epochs"


# Stopped and continued


STEPS = {
    "small": 4 * 3 + 4 * 3,
    "generic": 2 * 3 + 2 * 3,
}  # of choosing and of training: sixty images are three batches


@pytest.mark.parametrize("protocol", STEPS)
def test_a_probe_that_was_stopped_anywhere_takes_the_steps_that_are_left(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(linear, "BATCH", 20)
    settings = dict(layer="conv5", protocol=protocol, epochs=4 if protocol == "small" else 2)
    whole = outcomes(bench(tmp_path, TOY), **settings)["conv5"]
    step, logits, calls = Heads.step, Heads.logits, []

    def counted(self, *given):
        calls.append(len(given))
        if len(calls) == at:
            raise KeyboardInterrupt
        return (step if len(given) > 1 else logits)(self, *given)

    monkeypatch.setattr(Heads, "step", counted)
    monkeypatch.setattr(Heads, "logits", counted)
    at = None
    outcomes(bench(tmp_path, TOY), **settings)
    usual = [steps for steps in calls if steps > 1]
    assert len(usual) == STEPS[protocol]
    for at in range(1, len(calls) + 1, 9):
        held = bench(tmp_path, TOY)
        held.directory, held.save_every = tmp_path / f"{protocol} {at}", 0.0
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            outcomes(held, **settings)
        found = outcomes(held, **settings)["conv5"]
        assert (found.metrics, found.details) == (whole.metrics, whole.details)
        taken = len([steps for steps in calls if steps > 1])
        assert taken - len(usual) in (0, 1)  # the one that it was stopped in, if it was one


def test_layers_that_are_recorded_meanwhile_are_left_out(tmp_path, monkeypatch, folder):
    """A pass over all layers, killed between two records, continues with the others alone."""
    settings = dict(protocol="generic", epochs=2)
    whole = outcomes(bench(tmp_path, folder), layer="all", **settings)
    held = bench(tmp_path, folder)
    held.directory, held.save_every = tmp_path / "run", 0.0
    parts = Linear(layer="all", **settings).parts(held.checkpoint, folder)
    assert next(iter(parts[0].run(parts, held))).part.layer == "conv1"
    monkeypatch.setattr(Heads, "step", lambda *given: pytest.fail("trained again"))
    rest = {found.part.layer: found for found in parts[0].run(parts[3:], held)}
    assert list(rest) == ["conv4", "conv5"]
    assert all((rest[n].metrics, rest[n].details) == (whole[n].metrics, whole[n].details) for n in rest)


# What it is trained on


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (9, 1), (10, 1), (60, 6), (1438, 144), (25, 2)])
def test_a_seeded_tenth_of_train_is_held_out(count, held_out):
    held, kept = split_off(count, 3)
    assert len(held) == held_out
    assert sorted([*held, *kept]) == list(range(count))
    assert held.tolist() == sorted(held) == split_off(count, 3)[0].tolist()
    if count > 20:
        assert held.tolist() != split_off(count, 4)[0].tolist()


def test_one_image_cannot_be_split():
    with pytest.raises(UserError, match="too few"):
        split_off(1, 0)


@pytest.fixture
def passes(monkeypatch):
    """(which, ids) of every pass over training images: `train` with augmentation, `plain` without."""
    found = []
    for kind in ("train", "plain"):
        for source in (Cached, Online):
            original = getattr(source, kind)

            def spied(self, ids, *more, original=original, kind=kind):
                found.append((kind, np.array(ids)))
                return original(self, ids, *more)

            monkeypatch.setattr(source, kind, spied)
    return found


@pytest.mark.parametrize("protocol", ["small", "generic"])
def test_the_choice_is_made_on_images_that_were_not_trained_on(tmp_path, passes, protocol):
    outcomes(bench(tmp_path, TOY), layer="conv5", protocol=protocol, epochs=2)
    held, kept = split_off(60, 0)
    trained = [ids for kind, ids in passes if kind == "train" and len(ids) not in (len(held),)]
    assert [sorted(ids) for ids in trained] == [kept.tolist()] * 2 + [list(range(60))] * 2
    assert trained[0].tolist() != trained[1].tolist()  # another order each epoch
    assert [ids.tolist() for kind, ids in passes if kind == "plain"] == [held.tolist()]


def test_the_test_images_do_not_influence_the_choice(tmp_path):
    shuffled, replaced = Toy(), Toy()
    shuffled.labels["test"] = np.random.default_rng(9).permutation(shuffled.labels["test"])
    replaced.pixels["test"] = 255 - replaced.pixels["test"]
    settings = dict(layer="conv4", epochs=4)
    usual, *others = (
        outcomes(bench(tmp_path / str(at), toy), **settings)["conv4"]
        for at, toy in enumerate((TOY, shuffled, replaced))
    )
    for other in others:
        assert other.metrics != usual.metrics
        assert [other.details[name] for name in ("lr", "held_out_top1")] == [
            usual.details[name] for name in ("lr", "held_out_top1")
        ]


def test_the_training_labels_do(tmp_path):
    turned = Toy()
    turned.labels["train"] = np.random.default_rng(1).permutation(turned.labels["train"])
    settings = dict(layer="conv5", epochs=4)
    usual = outcomes(bench(tmp_path, TOY), **settings)["conv5"]
    other = outcomes(bench(tmp_path, turned), **settings)["conv5"]
    assert other.details["held_out_top1"] != usual.details["held_out_top1"]
    assert usual.metrics["top1"] > 60 > other.metrics["top1"]


# What is reported


def test_the_last_epoch_is_reported_and_the_best_kept_beside_it(tmp_path):
    (found,) = outcomes(bench(tmp_path, Toy(noise=120)), layer="conv2", epochs=6).values()
    curve = found.details["top1_by_epoch"]
    assert len(curve) == 6
    assert curve[-1] == pytest.approx(found.metrics["top1"], abs=1e-3)
    best = found.details["best_epoch"]
    assert best["top1"] == pytest.approx(max(curve), abs=1e-3)
    assert best["epoch"] == 1 + int(np.argmax(curve))
    assert found.details["lr"] in PROTOCOLS["small"].rates
    correct = unpack(found.details["correct"], 24)
    assert found.metrics["top1"] == pytest.approx(100 * correct.mean())
    assert found.metrics["top1"] <= found.metrics["top5"] == 100  # of three classes


def test_a_better_epoch_than_the_last_is_not_the_number():
    whole = np.ones((1, 4), bool)
    found = report(Linear(layer="conv1"), Measured([50.0], [75.0], [1.0], whole), {"lr": 0.1}, [20.0, 80.0, 80.0, 50.0])
    assert found.metrics == {"top1": 50.0, "top5": 75.0}
    assert found.details["best_epoch"] == {"epoch": 2, "top1": 80.0}


def test_short_trainings_last_as_many_steps_as_the_protocol_says(tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], epochs=3, least_steps=7))
    (usual,) = outcomes(bench(tmp_path, TOY), layer="conv5").values()
    assert len(usual.details["top1_by_epoch"]) == 7  # of one step each
    (asked,) = outcomes(bench(tmp_path, TOY), layer="conv5", epochs=2).values()
    assert len(asked.details["top1_by_epoch"]) == 2  # a number that is asked for is taken


def test_the_learning_rate_follows_the_schedule_to_the_last_step(tmp_path, monkeypatch):
    seen = []

    def spied(start, decay, step, steps):
        seen.append((start, decay, step, steps))
        return cosine(start, decay, step, steps)

    monkeypatch.setattr(linear, "BATCH", 25)
    monkeypatch.setitem(PROTOCOLS, "small", dataclasses.replace(PROTOCOLS["small"], schedule=spied, rates=(0.1, 0.01)))
    (found,) = outcomes(bench(tmp_path, TOY), layer="conv5", epochs=2).values()
    choosing = [(rate, 1e-4, step, 6) for step in range(6) for rate in (0.1, 0.01)]  # 54 images: 3 batches
    assert seen == choosing + [(found.details["lr"], 1e-4, step, 6) for step in range(6)]


class Fixed:
    """Heads whose logits are the features, (B, R C)."""

    def __init__(self, classes):
        self.classes = classes

    def logits(self, x):
        return x.T.unflatten(0, (-1, self.classes))


def by_hand(logits, labels, top):
    """top-k in percent and the mean loss of classifier 0, of the mean of the crops' softmaxes, in float64."""
    right, losses = [], []
    for image, label in zip(logits.double(), labels):
        probability = sum(torch.exp(crop - torch.logsumexp(crop, 0)) for crop in image) / len(image)
        own = probability[label]
        right.append(sum(value >= own for value in probability) <= top)
        losses.append(-math.log(own))
    return 100 * np.mean(right), np.mean(losses)


@pytest.mark.parametrize("crops", [1, 10])
def test_crops_are_averaged_as_probabilities(crops):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, crops, 8, generator=generator)
    labels = torch.randint(8, (40,), generator=generator)
    batches = [(labels[:15], {"l": logits[:15]}), (labels[15:], {"l": logits[15:]})]
    found = measure({"l": Fixed(8)}, batches, {})["l"]
    assert found.top1[0] == pytest.approx(by_hand(logits, labels, 1)[0])
    assert found.top5[0] == pytest.approx(by_hand(logits, labels, 5)[0])
    assert found.loss[0] == pytest.approx(by_hand(logits, labels, 1)[1], rel=1e-5)
    assert found.correct.shape == (1, 40)
    assert 100 * found.correct[0].mean() == pytest.approx(found.top1[0])
    apart = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(crops)).item()
    assert found.loss[0] == pytest.approx(apart, rel=1e-5) if crops == 1 else found.loss[0] < 0.9 * apart


def test_each_rate_is_measured():
    logits = torch.tensor([[[5.0, 0, 0, 0, 9, 0]], [[0, 5.0, 0, 9, 0, 0]]])  # two classifiers of three classes
    found = measure({"l": Fixed(3)}, [(torch.tensor([0, 1]), {"l": logits})], {})["l"]
    assert found.top1 == [100, 0]
    assert found.correct.tolist() == [[True, True], [False, False]]


def test_ties_and_numbers_that_are_none_are_never_right():
    labels = torch.tensor([0, 1, 2, 0])
    zeros = torch.zeros(4, 1, 6)
    found = measure({"l": Fixed(6)}, [(labels, {"l": zeros})], {})["l"]
    assert (found.top1, found.top5) == ([0], [0])
    for bad in (math.nan, math.inf):
        found = measure({"l": Fixed(6)}, [(labels, {"l": zeros + bad})], {})["l"]
        assert (found.top1, found.top5) == ([0], [0])
        assert not math.isfinite(found.loss[0])
    tied = torch.tensor([[[1.0, 1, 0, -1, -2, -3]]])
    found = measure({"l": Fixed(6)}, [(torch.tensor([0]), {"l": tied})], {})["l"]
    assert (found.top1, found.top5) == ([0], [100])


@pytest.mark.parametrize("crops", [1, 10])
def test_a_confident_mistake_has_a_finite_loss(crops):
    """Its probability is 0 in float32: that is no divergence."""
    steep = torch.zeros(2, crops, 3)
    steep[:, :, 1] = 1000
    found = measure({"l": Fixed(3)}, [(torch.tensor([1, 0]), {"l": steep})], {})["l"]
    assert found.loss[0] == pytest.approx(500)
    assert found.top1 == [50]


def measured(top1, loss):
    return Measured(top1, top1, loss, np.zeros((len(top1), 1), bool))


def test_the_best_rate_is_chosen_and_the_lower_loss_among_equals():
    rates = (0.3, 0.1, 0.03)
    found = {"a": measured([70, 80, 60], [1, 1, 1]), "b": measured([80, 80, 80], [2, 1, 3])}
    chosen = choose(found, {"a": rates, "b": rates})
    assert {layer: choice["lr"] for layer, choice in chosen.items()} == {"a": 0.1, "b": 0.1}
    assert chosen["a"]["held_out_top1"] == {"0.3": 70, "0.1": 80, "0.03": 60}


def test_a_rate_that_diverged_is_not_chosen():
    rates = (0.3, 0.1)
    assert choose({"a": measured([90, 10], [math.nan, 1])}, {"a": rates})["a"]["lr"] == 0.1
    with pytest.raises(RunFailed, match="every learning rate of a diverged"):
        choose({"a": measured([90, 10], [math.nan, math.inf])}, {"a": rates})
    with pytest.raises(RunFailed, match=r"conv1 diverged at learning rate 0\.1"):
        report(Linear(layer="conv1"), measured([90.0], [math.nan]), {"lr": 0.1}, [90.0])


@pytest.mark.parametrize("protocol", ["small", "generic"])
def test_weights_that_are_no_numbers_fail_the_run(tmp_path, protocol):
    held = bench(tmp_path, TOY)
    with torch.no_grad():
        held.backbone.features[0].weight.fill_(math.nan)
    with pytest.raises(RunFailed, match="conv2"):
        outcomes(held, layer="conv2", protocol=protocol, epochs=1)


# What it is called, and what it refuses


@pytest.mark.parametrize(
    ("checkpoint", "size", "protocol"),
    [("alexnet", 224, "deepcluster"), ("alexnet", None, "deepcluster"), ("alexnet", 96, "small"),
     ("alexnet32", 97, "generic"), ("alexnet32", None, "generic"), ("small_vgg", 28, "small")],
)  # fmt: skip
def test_the_protocol_follows_the_images_and_the_backbone(checkpoint, size, protocol):
    class Sized(Toy):
        pass

    Sized.size = size
    (part,) = Linear(layer="conv1").parts(random_checkpoint(f"random-{checkpoint}@0"), Sized())
    assert (part.protocol, part.epochs) == (protocol, PROTOCOLS[protocol].epochs)
    assert part.protocol_id(TOY) == f"{protocol}@1"


def test_another_number_of_epochs_is_another_protocol():
    def protocol(epochs):
        return Linear(layer="conv1", epochs=epochs).parts(random_checkpoint(), TOY)[0].protocol_id(TOY)

    assert protocol(0) == protocol(30) == "small@1"
    assert protocol(5) == "small@1, 5 epochs"
    with pytest.raises(UserError, match="--epochs -1"):
        protocol(-1)


def test_the_protocols_are_those_of_the_document():
    assert PROTOCOLS["small"].rates == (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    assert PROTOCOLS["deepcluster"].rates == PROTOCOLS["generic"].rates == (0.1, 0.03, 0.01, 0.003)
    assert [PROTOCOLS[name].epochs for name in ("small", "deepcluster", "generic")] == [30, 90, 90]
    assert (PROTOCOLS["small"].least_steps, BATCH) == (2000, 256)


def test_published_rates_are_taken_as_they_are(tmp_path, passes, folder):
    """deepcluster.md 2.1: the program's defaults, and DeeperCluster's table."""
    found = outcomes(
        bench(tmp_path, folder, "random-alexnet@0"), layer="conv5", protocol="deepcluster-published", epochs=1
    )
    assert found["conv5"].details["lr"] == 0.01
    assert found["conv5"].details["held_out_top1"] is None
    assert found["conv5"].part.protocol_id(folder) == "deepcluster-published@1, 1 epochs"
    assert [(kind, len(ids)) for kind, ids in passes] == [("train", 6)]  # once, on all images
    script = PROTOCOLS["deepcluster-script"]
    assert (script.rates, script.decay, script.epochs) == ((0.01,), 1e-7, 90)


class Named(Toy):
    name = "imagenet"
    size = 224


def test_deeperclusters_rates_are_by_data_set_and_layer():
    vgg = random_checkpoint("random-vgg16@0")
    linear = Linear(protocol="deepercluster")
    assert [part.epochs for part in linear.parts(vgg, Named())] == [100] * 13
    grid = linear.grid(("conv1", "conv13"), vgg, Named())
    assert grid == {"conv1": (0.005,), "conv13": (0.02,)}
    with pytest.raises(UserError, match="rates for imagenet and places205, not toy") as caught:
        linear.parts(vgg, TOY)
    assert caught.value.fix == "--protocol generic"
    with pytest.raises(UserError, match="no learning rate for embedding"):
        Linear(protocol="deepercluster", layer="embedding").parts(vgg, Named())
    with pytest.raises(UserError, match="made for vgg16, not alexnet32"):
        linear.parts(random_checkpoint(), Named())


def test_every_protocol_can_be_asked_for():
    choices = get_args(get_type_hints(Linear)["protocol"])
    assert choices == ("auto", *PROTOCOLS)


def test_each_layer_is_a_part():
    assert [part.layer for part in Linear().parts(random_checkpoint(), TOY)] == [f"conv{n}" for n in range(1, 6)]
    with pytest.raises(UserError, match=r"no layer 'cov3' \(did you mean 'conv3'\?\)"):
        Linear(layer="cov3").parts(random_checkpoint(), TOY)


def test_the_embedding_can_be_probed_by_every_protocol(tmp_path):
    for protocol in ("small", "generic"):
        (found,) = outcomes(bench(tmp_path, TOY), layer="embedding", protocol=protocol, epochs=1).values()
        assert 0 <= found.metrics["top1"] <= 100


def test_protocols_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="made for alexnet, not alexnet32") as caught:
        Linear(protocol="deepcluster").parts(random_checkpoint(), TOY)
    assert caught.value.fix == "--protocol generic"
    with pytest.raises(UserError, match="one view") as caught:
        Linear(crops=10).parts(random_checkpoint(), TOY)
    assert "--crops 1" in caught.value.fix


def test_images_without_classes_or_evaluation_are_refused():
    class Unlabelled(Toy):
        classes = ()

    class Whole(Toy):
        splits = {"train": 60}  # noqa: RUF012

    for dataset, why in ((Unlabelled(), "no classes"), (Whole(), "no images to evaluate on")):
        with pytest.raises(UserError, match=why):
            Linear().parts(random_checkpoint(), dataset)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_there_is_an_output_for_each_class(tmp_path, monkeypatch, classes):
    made = []
    start = Heads.__init__

    def spied(self, dim, count, *more):
        made.append(count)
        start(self, dim, count, *more)

    monkeypatch.setattr(Heads, "__init__", spied)
    (found,) = outcomes(bench(tmp_path, Toy(classes=classes)), layer="conv5", epochs=3).values()
    assert made == [classes, classes]
    assert (found.metrics["top5"] == 100) or classes > 5
