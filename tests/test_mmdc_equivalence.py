"""MMDC against the released program, derived again from its description by loops, Pillow and linear programming.

The tests of mmdc.md 2.3. Others of that list: ACC and NMI by brute force in test_scores.py, the order of rotations in
test_views.py, the multiset of targets, the reuse of features and the continuation of a run in test_mmdc.py.
"""

import math
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from scipy.optimize import linear_sum_assignment, linprog
from sklearn.cluster import KMeans
from torch import nn
from trainings import TINY, Pictures, checkpoint, log, start, training

import pretrain.mmdc as module
from pretrain.mmdc import MMDC, parameter_groups
from zoo.clustering.targets import Targets
from zoo.seeds import derive
from zoo.steps import descend
from zoo.training import Training

BILINEAR = Image.Resampling.BILINEAR
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Few(Pictures):
    """So few that a program in float64 keeps pace; in noise no neighbours are equal, so rounding decides no maximum."""

    splits = {"train": 18, "test": 6}  # noqa: RUF012


def built(folder, dataset=TINY, outputs=10, **settings):
    method = MMDC(**{"batch": 24, **settings})
    run = training(method, folder, dataset)
    return method, run, method.build_network(run, outputs)


# The state dict and the optimiser's two groups


def norm(name, width):
    return [(f"{name}.{kind}", (width,) if kind != "num_batches_tracked" else ()) for kind in STATISTICS]


def linear(name, inputs, outputs):
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def small_vgg(channels, heads):
    """Names and shapes of the released small VGG's state dict, in its order (mmdc.md 1.8)."""
    found = []
    for index, inputs, width in ((0, channels, 32), (4, 32, 64), (8, 64, 128), (12, 128, 256)):
        found += [(f"features.{index}.weight", (width, inputs, 3, 3)), *norm(f"features.{index + 1}", width)]
    return found + [entry for name, outputs in heads.items() for entry in linear(name, 1024, outputs)]


def resnet18(channels, heads):
    """The same of its ResNet-18."""
    found = [("conv1.weight", (64, channels, 3, 3)), *norm("bn1", 64)]
    for stage, (inputs, width) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
        for block in (0, 1):
            place, before = f"layer{stage}.{block}", width if block else inputs
            found += [(f"{place}.conv1.weight", (width, before, 3, 3)), *norm(f"{place}.bn1", width)]
            found += [(f"{place}.conv2.weight", (width, width, 3, 3)), *norm(f"{place}.bn2", width)]
            if before != width:
                found += [(f"{place}.downsample.0.weight", (width, before, 1, 1))]
                found += norm(f"{place}.downsample.1", width)
    return found + [entry for name, outputs in heads.items() for entry in linear(name, 512, outputs)]


TOP, BOTH = {"top_layer": 10}, {"top_layer": 10, "rotnet_head": 4}
NETWORKS = [  # by name, data set, heads: entries of the state dict, parameters, tensors in either group
    pytest.param(small_vgg, Pictures(channels=1), TOP, (26, 398570), (9, 5), id="small_vgg"),
    pytest.param(small_vgg, Pictures(channels=3), BOTH, (28, 403246), (10, 6), id="small_vgg with rotation"),
    pytest.param(resnet18, Pictures(channels=3), BOTH, (124, 11176014), (42, 22), id="resnet18 with rotation"),
    pytest.param(resnet18, Pictures(channels=1), TOP, (122, 11172810), (41, 21), id="resnet18"),
]


@pytest.mark.parametrize(("released", "dataset", "heads", "sizes", "groups"), NETWORKS)
def test_names_and_shapes_are_the_released_ones_in_their_order(tmp_path, released, dataset, heads, sizes, groups):
    _, _, net = built(tmp_path, dataset, backbone=released.__name__, rotation="rotnet_head" in heads)
    found = [(name.removeprefix("backbone."), tuple(t.shape)) for name, t in net.state_dict().items()]
    assert found == released(dataset.channels, heads)
    assert (len(found), sum(p.numel() for p in net.parameters())) == sizes


@pytest.mark.parametrize(("released", "dataset", "heads", "sizes", "groups"), NETWORKS)
@pytest.mark.parametrize("sobel", [False, True])
def test_an_optimiser_state_numbers_its_tensors_as_the_released_one(
    tmp_path, released, dataset, heads, sizes, groups, sobel
):
    backbone, rotation = released.__name__, "rotnet_head" in heads
    _, _, net = built(tmp_path, dataset, backbone=backbone, rotation=rotation, sobel=sobel)
    optimizer = torch.optim.SGD(parameter_groups(net, 5e-4), 0.05, 0.9)
    learnt = [
        (name, shape)
        for name, shape in released(2 if sobel else dataset.channels, heads)
        if name.rpartition(".")[2] in ("weight", "bias")
    ]
    wanted = [entry for entry in learnt if len(entry[1]) == 1] + [entry for entry in learnt if len(entry[1]) > 1]
    names = {id(p): name.removeprefix("backbone.") for name, p in net.named_parameters()}
    found = [(names[id(p)], tuple(p.shape)) for group in optimizer.param_groups for p in group["params"]]
    assert found == wanted
    first, second = optimizer.state_dict()["param_groups"]
    assert first["params"] == list(range(groups[0]))
    assert second["params"] == list(range(groups[0], sum(groups)))
    assert (first["weight_decay"], second["weight_decay"]) == (0, 5e-4)
    for group in (first, second):
        assert (group["lr"], group["momentum"], group["nesterov"], group["dampening"]) == (0.05, 0.9, False, 0)


# The assignment of a batch


def distances(outputs, targets):
    """Euclidean, float64, one pair after the other."""
    return np.array([[math.sqrt(sum((a - b) ** 2 for a, b in zip(p, t))) for t in targets] for p in outputs])


@pytest.mark.parametrize("spread", [1.0, 1e-3])  # the latter as at the start, when all outputs are nearly the same
@pytest.mark.parametrize(("kind", "dim", "sigma"), [("one_hot", 10, 0.0), ("one_hot", 10, 0.1), ("random", 6, 0.1)])
def test_a_batch_gets_the_assignment_of_the_whole_float64_matrix(kind, dim, sigma, spread):
    targets = Targets.draw(300, 10, dim, kind, sigma, seed=5)
    draws = torch.Generator().manual_seed(1)
    outputs = F.normalize(torch.randn(dim, generator=draws) + spread * torch.randn(128, dim, generator=draws))
    rows = torch.randperm(300, generator=draws)[:128]
    before = targets[rows].double().numpy()
    cost = distances(outputs.double().tolist(), before.tolist())
    targets.assign(rows, outputs)
    found = targets[rows].double().numpy()
    assert np.array_equal(found, before[linear_sum_assignment(cost)[1]])


def test_a_batch_gets_the_solution_of_the_transport_of_images_to_clusters():
    """With one-hot targets the whole matrix says no more than its k different columns, each with its supply."""
    k, targets = 10, Targets.draw(128, 10, 10, "one_hot", 0.0, seed=2)
    outputs = F.normalize(torch.randn(128, k, generator=torch.Generator().manual_seed(3)))
    cost = distances(outputs.double().tolist(), np.eye(k).tolist())
    supply = Counter(targets.held.tolist())
    each, held = np.kron(np.eye(128), np.ones(k)), np.kron(np.ones(128), np.eye(k))
    amounts = [1.0] * 128 + [supply[cluster] for cluster in range(k)]
    solved = linprog(cost.ravel(), A_eq=np.concatenate([each, held]), b_eq=amounts, method="highs")
    targets.assign(torch.arange(128), outputs)
    assert targets.held.tolist() == solved.x.reshape(128, k).argmax(1).tolist()


# What the network sees


@pytest.mark.parametrize("preset", ["mnist", "cifar10", "stl10", "tiny-imagenet"])
def test_the_images_evaluated_are_pillow_s_to_the_bit(tmp_path, preset):
    """The geometry of mmdc.md 1.6: the source's side, the centre crop and the input are the paper's."""
    side, channels, crop, size = {
        **{"mnist": (28, 1, 24, 32), "cifar10": (32, 3, 20, 32)},
        **{"stl10": (96, 3, 64, 64), "tiny-imagenet": (64, 3, 40, 64)},
    }[preset]
    method = MMDC(**MMDC.presets[preset])
    run = training(method, tmp_path, Pictures(side, channels))
    centre = method.centre_crops(run)
    assert centre.pixels.shape == (80, channels, size, size)
    for image, found in zip(run.images.pixels, centre.pixels):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
        wanted = TF.center_crop(picture, crop).resize((size, size), BILINEAR)
        assert np.array_equal(np.asarray(wanted).reshape(size, size, -1), found.permute(1, 2, 0).numpy())


CROPS = (28, 30)


def seen(folder, *words):
    """(ids, network input) of each batch of one epoch: of the rotation pass, if there is one, then of the other."""
    found, batches = [], Training.batches

    def recorded(*words, **named):
        for ids, x in batches(*words, **named):
            found.append((ids.copy(), x.clone()))
            yield ids, x

    words = ["--epochs", "1", "--batch", "12", "--crops", *map(str, CROPS), *words]
    with patch.object(Training, "batches", recorded):
        assert start(MMDC, folder, *words, dataset=Pictures()) == 0
    return found


def crops(image):
    """Every crop of an image (H, W, C) at 32 px in [0, 1], as torchvision's ToTensor gives it: bytes."""
    picture, found = Image.fromarray(np.ascontiguousarray(image)), set()
    for side in CROPS:
        for top in range(len(image) - side + 1):
            for left in range(len(image) - side + 1):
                cut = picture.crop((left, top, left + side, top + side)).resize((32, 32), BILINEAR)
                found.add(TF.to_tensor(cut).numpy().tobytes())
    return found


def swap(image):
    """The image with rows for columns."""
    return image.transpose(1, 0, 2)


def test_the_rotation_pass_sees_crops_of_the_turned_image_and_nothing_else(tmp_path):
    """No flip, no jitter and no small rotation, whatever the settings say: mmdc.md 1.3."""
    found = seen(tmp_path, "--rotation", "--flip", "--jitter", "--degrees", "25")[:7]
    assert sorted(i for ids, _ in found for i in ids) == list(range(80))  # each image once
    pictures = Pictures().open("merged").pixels.permute(0, 2, 3, 1).numpy()
    ids, x = found[0]
    assert x.shape == (4 * 12, 3, 32, 32)
    for number, pixels in enumerate(x):
        image = pictures[ids[number // 4]]
        turned = (image, np.flipud(swap(image)), np.fliplr(np.flipud(image)), swap(np.flipud(image)))[number % 4]
        assert pixels.contiguous().numpy().tobytes() in crops(turned), number


@pytest.mark.parametrize(
    ("words", "upright", "mirrored"),
    [("--no-flip", 80, 0), ("--flip", 40, 40), ("--jitter", 0, 0), ("--degrees 25", 0, 0)],
)
def test_the_training_pass_sees_crops_as_the_settings_say(tmp_path, words, upright, mirrored):
    found = seen(tmp_path, "--degrees", "0", *words.split())
    pictures = Pictures().open("merged").pixels.permute(0, 2, 3, 1).numpy()
    shown = [(pictures[i], pixels.contiguous().numpy().tobytes()) for ids, x in found for i, pixels in zip(ids, x)]
    assert len(shown) == 80
    assert abs(sum(pixels in crops(image) for image, pixels in shown) - upright) <= 15 * (0 < upright < 80)
    assert abs(sum(pixels in crops(image[:, ::-1]) for image, pixels in shown) - mirrored) <= 15 * (0 < mirrored < 80)


# The head that a pass does not train


def test_an_idle_head_decays_as_469_steps_of_the_formula():
    """One pass over 60 000 images: exp(-lr wd / (1 - momentum) 469) = .889; with gradients of None it were 1."""
    lr, decay, momentum, steps = 0.05, 5e-4, 0.9, 469
    head, other = nn.Linear(6, 3), nn.Linear(6, 3).double()
    optimizer = torch.optim.SGD(parameter_groups(nn.ModuleList([head, other]), decay), lr, momentum)
    other.weight.grad, other.bias.grad = torch.zeros_like(other.weight), torch.zeros_like(other.bias)
    weight, bias = other.weight.detach().clone(), other.bias.detach().clone()
    x = torch.rand(4, 6)
    for _ in range(steps):
        descend(head(x).square().mean(), optimizer, zeros=True)
    # weight and velocity after a step are linear in those before it: (w, v) -> (w - lr v', v' = momentum v + decay w)
    once = np.array([[1 - lr * decay, -lr * momentum], [decay, momentum]])
    factor = np.linalg.matrix_power(once, steps)[0, 0]
    assert torch.allclose(other.weight, factor * weight, rtol=1e-9)
    assert factor == pytest.approx(math.exp(-lr * decay / (1 - momentum) * steps), rel=3e-3)
    assert round(math.exp(-lr * decay / (1 - momentum) * steps), 3) == 0.889
    assert torch.equal(other.bias, bias)  # vectors do not decay


# A whole run, beside the released program's


class Released:
    """The released program on small_vgg in float64: layers, losses and the optimiser's step written out."""

    def __init__(self, state, lr, decay):
        self.state = {name.removeprefix("backbone."): t.detach().double() for name, t in state.items()}
        self.lr, self.decay = lr, decay
        self.gradients, self.momenta = {}, {}

    def features(self, x, train):
        for i in (0, 4, 8, 12):
            x = F.conv2d(x, self.state[f"features.{i}.weight"], padding=1)
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            place = f"features.{i + 1}"
            if train:
                unbiased = x.detach().var((0, 2, 3))
                self.drift(f"{place}.running_mean", mean.detach())
                self.drift(f"{place}.running_var", unbiased)
            else:
                mean, variance = self.state[f"{place}.running_mean"], self.state[f"{place}.running_var"]
            x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            x = x * self.state[f"{place}.weight"][:, None, None] + self.state[f"{place}.bias"][:, None, None]
            x = F.max_pool2d(x.clamp(min=0), 2)
        return x.reshape(len(x), 1024)

    def drift(self, name, value):
        self.state[name] = 0.9 * self.state[name] + 0.1 * value

    def head(self, name, x, train):
        return self.features(x, train) @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def outputs(self, x, train=False):
        rows = self.head("top_layer", x, train)
        return rows / rows.square().sum(1, keepdim=True).sqrt()

    def learnt(self):
        return [name for name in self.state if name.endswith((".weight", ".bias"))]

    def learn_targets(self, x, targets):
        return self.descend(lambda: (self.outputs(x, train=True) - targets).square().mean())

    def learn_rotations(self, x):
        def loss():
            logits = self.head("rotnet_head", x, train=True)
            rows = torch.arange(len(x))
            return (logits.exp().sum(1).log() - logits[rows, rows % 4]).mean()

        return self.descend(loss)

    def descend(self, compute):
        """torch 1.4's zero_grad, backward and SGD: a gradient that was once there is never None again."""
        names = self.learnt()
        for name in names:
            self.state[name].requires_grad_()
        loss = compute()
        found = torch.autograd.grad(loss, [self.state[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, found):
            value = self.state[name] = self.state[name].detach()
            if gradient is None and name not in self.gradients:
                continue  # its head was never trained: not moved
            self.gradients[name] = torch.zeros_like(value) if gradient is None else gradient
            change = self.gradients[name] + (self.decay * value if value.ndim > 1 else 0)
            self.momenta[name] = 0.9 * self.momenta[name] + change if name in self.momenta else change
            self.state[name] = value - self.lr * self.momenta[name]
        return loss.item()


class Witness:
    """What a run drew and decided, in order: (kind, …)."""

    def __init__(self, monkeypatch):
        self.events, self.start = [], None
        for owner, name in ((Targets, "assign"), (Targets, "refine"), (MMDC, "build_network"), (module, "evaluate")):
            monkeypatch.setattr(owner, name, getattr(self, name)(getattr(owner, name)))
        monkeypatch.setattr(Training, "batches", self.batches(Training.batches))

    def build_network(self, build):
        def wrapped(method, *words):
            net = build(method, *words)
            self.start = {name: t.detach().clone() for name, t in net.state_dict().items()}
            return net

        return wrapped

    def batches(self, batches):
        def wrapped(run, *words, **named):
            for ids, x in batches(run, *words, **named):
                turned = len(x) == 4 * len(ids)
                self.events.append(("rotation" if turned else "training", torch.from_numpy(ids), x.double()))
                yield ids, x

        return wrapped

    def assign(self, assign):
        def wrapped(targets, rows, outputs):
            before = targets[rows].double()
            assign(targets, rows, outputs)
            self.events.append(("assign", rows, before, targets[rows].double()))

        return wrapped

    def refine(self, refine):
        def wrapped(targets, seed):
            before = targets[torch.arange(len(targets.held))].double()
            refine(targets, seed)
            after = targets[torch.arange(len(targets.held))].double()
            self.events.append(("refine", seed, targets.outputs, targets.means.double(), before, after))

        return wrapped

    def evaluate(self, evaluate):
        def wrapped(network, *words):
            outputs = evaluate(network, *words)
            self.events.append(("evaluate", outputs.double()))
            return outputs

        return wrapped


def check_assignment(outputs, before, after):
    """The same targets in the order whose sum of float64 distances is least."""
    assert sorted(after.tolist()) == sorted(before.tolist())
    cost = distances(outputs.tolist(), before.tolist())
    least = cost[linear_sum_assignment(cost)].sum()
    assert (outputs - after).square().sum(1).sqrt().sum().item() == pytest.approx(least, abs=1e-4)


def check_refinement(seed, outputs, means, before, after):
    """Targets are the means of k-means clusters of the outputs, named to overlap most with the targets before."""
    k, state = len(means), derive(seed) % 2**32
    new = KMeans(k, n_init=10, max_iter=300, tol=1e-4, algorithm="elkan", random_state=state).fit_predict(outputs)
    held, previous = (np.argmin(distances(rows.tolist(), means.tolist()), 1) for rows in (after, before))
    assert torch.equal(after, means[held])
    assert len(set(zip(new, held))) == len(set(new)) == len(set(held))  # a cluster a mean
    table = np.zeros((k, k), int)
    for i, j in zip(new, previous):
        table[i, j] += 1
    assert (held == previous).sum() == table[linear_sum_assignment(len(new) - table)].sum()


FEW, COUNT = Few(channels=1), 24
WORDS = (
    *("--epochs", "3", "--batch", "10", "--refine-at", "2", "--drop-at", "1", "--drop", ".2"),
    *("--lr", ".002", "--weight-decay", ".05"),  # small steps, for float32 to stay near; a decay that one sees
)
KINDS = {
    "as published": ("--rotation", "--degrees", "0", "--flip"),
    "without rotation": (),
    "random means": ("--rotation", "--means", "random", "--dim", "7", "--sigma", ".1"),
}


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_a_run_is_the_released_program_s(tmp_path, monkeypatch, words):
    witness = Witness(monkeypatch)
    assert start(MMDC, tmp_path, *WORDS, *words, dataset=FEW) == 0
    assert [kind for kind, *_ in witness.events] == order_of_events("--rotation" in words)
    program = Released(witness.start, 0.002, 0.05)
    losses = follow(program, witness.events, centre_crops())
    for entry, loss in zip(log(tmp_path), losses):
        assert entry["loss"] == pytest.approx(loss["training"], rel=1e-3)
        assert (entry["rotation_loss"] or 0) == pytest.approx(loss["rotation"], rel=1e-3)
    check_weights(program, witness.start, checkpoint(tmp_path))


def centre_crops():
    """What is assigned and evaluated, by Pillow: float64 (24, 1, 32, 32)."""
    images = [Image.fromarray(image) for image in FEW.open("merged").pixels[:, 0].numpy()]
    cut = [np.asarray(image.crop((2, 2, 30, 30)).resize((32, 32), BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(cut))[:, None].double() / 255


def follow(program, events, centre):
    """Let the program learn what the run learnt, and check each of the run's decisions; the losses of each epoch."""
    held, losses = torch.zeros(0), []
    for number, (kind, *values) in enumerate(events):
        if kind == "evaluate":
            assert torch.allclose(program.outputs(centre), values[0], atol=2e-3), number
            losses.append(Counter())
            program.lr = 0.002 * (0.2 if len(losses) > 1 else 1)
        elif kind == "rotation":
            losses[-1][kind] += program.learn_rotations(values[1]) * len(values[0]) / COUNT
        elif kind == "training":
            rows, x = values
            if events[number + 1][0] == "assign":
                _, _, before, after = events[number + 1]
                check_assignment(program.outputs(centre[rows]), before, after)
                held = held if len(held) else after.new_zeros(COUNT, after.shape[1])
                assert len(losses) == 1 or torch.equal(held[rows], before)
                held[rows] = after
            losses[-1][kind] += program.learn_targets(x, held[rows]) * len(rows) / COUNT
        elif kind == "refine":
            check_refinement(*values)
            assert torch.equal(values[3], held)
            held = values[4]
    return losses


def order_of_events(rotation):
    """mmdc.md 1.3, of 24 images in batches of 10: refine, all rotations, all targets, evaluate."""
    turned = ["rotation"] * 3 * rotation
    early, late = [*turned, *["training", "assign"] * 3, "evaluate"], ["refine", *turned, *["training"] * 3, "evaluate"]
    return ["evaluate", *early * 2, *late]


def check_weights(program, before, made):
    """The checkpoint's tensors are the program's, up to rounding: two hundredths of how far they came."""
    found = {**made.groups["backbone"], **made.groups["head"]}
    assert set(found) == set(program.state)
    before = {name.removeprefix("backbone."): t for name, t in before.items()}
    for name, value in found.items():
        if not name.endswith("num_batches_tracked"):
            assert (value - program.state[name]).norm() <= 0.02 * (value - before[name]).norm(), name
