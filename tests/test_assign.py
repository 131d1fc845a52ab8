"""python -m pretrain.assign: the formulas by hand, every way to name images, the csv, and what is refused."""

import csv
import io
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from deaths import dying, exit_code
from pictures import write_image
from PIL import Image
from shardfiles import write_shards
from toys import random_checkpoint

from pretrain import assign as command
from pretrain.assign import main, quoted, rows
from probes.clustering import assign_by_head
from results.errors import UserError
from results.files import ROOT
from zoo.backbones import EMBEDDING
from zoo.checkpoint import resolve
from zoo.clustering import assigning
from zoo.clustering.assigning import Clusters, read_clusters
from zoo.datasets.digits import Digits

MMDC = "mmdc-small_vgg-digits-s0"
PLAIN = ("--device", "cpu", "--threads", "1", "--workers", "0", "--quiet")


@pytest.fixture
def typed(capsysbinary):
    """(exit code, stdout, stderr) of the command, run in this process."""

    def run(*words):
        code = main([*PLAIN, *map(str, words)])
        said = capsysbinary.readouterr()
        return code, said.out, said.err.decode()

    return run


@pytest.fixture
def table(typed):
    """The csv of a command that ends well: {image: (cluster, distance)}, names as the file system has them."""

    def run(*words):
        code, out, err = typed(*words)
        assert (code, err) == (0, "")
        return read(out)

    return run


def read(written):
    """What a csv says: {image: (cluster, distance)}."""
    text = io.StringIO(written.decode("utf-8", "surrogateescape"), newline="")
    head, *lines = csv.reader(text)
    assert head == ["image", "cluster", "distance"]
    found = {name: (int(cluster), float(distance)) for name, cluster, distance in lines}
    assert len(found) == len(lines)
    return found


def clusters(found):
    return [cluster for cluster, _ in found.values()]


def distances(found):
    return [distance for _, distance in found.values()]


def held(name):
    """The head's and the clusters' tensors of a checkpoint, float64."""
    groups = resolve(name).groups
    return {name: tensor.double().numpy() for name, tensor in {**groups["head"], **groups["clustering"]}.items()}


@torch.no_grad()
def embed(name, pixels):
    """The embedding (N, D), float64, of network inputs (N, C, 32, 32)."""
    return resolve(name).build_backbone().embed(torch.from_numpy(pixels).float()).double().numpy()


def nearest_by_loops(points, centres):
    """Cluster and distance of each point."""
    found = []
    for point in points:
        lengths = np.sqrt(np.sum((centres - point) ** 2, axis=1))
        found.append((int(np.argmin(lengths)), np.min(lengths)))
    return found


def assert_same(found, expected):
    assert clusters(found) == [cluster for cluster, _ in expected]
    np.testing.assert_allclose(distances(found), [distance for _, distance in expected], atol=2e-4)


# The formulas


def test_deepcluster_by_hand(table):
    pixels = Digits().open("train").pixels[::3].numpy()
    inputs = np.repeat((pixels / 255 - 0.3061) / 0.3239, 3, axis=1)
    tensors = held("reference")
    points = []
    for descriptor in embed("reference", inputs):
        white = tensors["pca_components"] @ (descriptor - tensors["pca_mean"])
        points.append(white / np.sqrt(np.sum(white**2)))
    found = table("--split", "train")
    assert list(found) == [str(number) for number in range(1438)]
    assert_same(dict(list(found.items())[::3]), nearest_by_loops(points, tensors["centroids"]))


def test_mmdc_by_hand(table):
    inputs = []
    for image in Digits().open("merged").pixels[::9, 0].numpy():
        central = Image.fromarray(image).crop((2, 2, 30, 30)).resize((32, 32), Image.Resampling.BILINEAR)
        inputs.append(np.asarray(central)[None] / 255)
    tensors = held(MMDC)
    points = []
    for descriptor in embed(MMDC, np.stack(inputs)):
        output = tensors["top_layer.weight"] @ np.maximum(descriptor, 0) + tensors["top_layer.bias"]
        points.append(output / np.sqrt(np.sum(output**2)))
    found = table("--checkpoint", MMDC)
    assert list(found) == [str(number) for number in range(1797)]
    assert_same(dict(list(found.items())[::9]), nearest_by_loops(points, tensors["means"]))


def test_mmdc_is_what_the_probe_scores():
    descriptors = np.random.default_rng(0).normal(size=(40, 1024)).astype(np.float32)
    checkpoint = resolve(MMDC)
    found = read_clusters(checkpoint).assign(torch.from_numpy(descriptors))[0]
    assert found.tolist() == assign_by_head(descriptors, checkpoint).tolist()
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("checkpoint", ["reference", MMDC])
def test_one_by_one_is_as_in_batches(table, checkpoint):
    words = ["--checkpoint", checkpoint, "--limit", "70"]
    together, alone = table(*words), table(*words, "--batch", "1")
    assert list(together) == list(alone) == [str(number * 1797 // 70) for number in range(70)]
    assert clusters(together) == clusters(alone)
    assert distances(together) == pytest.approx(distances(alone), abs=1e-4)
    assert len(set(clusters(together))) > 1


def test_the_tensors_say_how_to_assign(monkeypatch):
    """Another kind is an entry with a function; what it needs more of stands before what needs less."""

    def read_mixture(tensors):
        def likely(points, centres):
            return (-torch.cdist(points, centres) + tensors["clustering/weights"].log()).argmax(1).numpy()

        return Clusters(tensors["clustering/means"], lambda x: x[:, :3], likely)

    shapes = {"clustering/weights": "k", "clustering/means": "kd"}
    monkeypatch.setattr(assigning, "KINDS", ((shapes, read_mixture), *assigning.KINDS))
    means = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    mixed = with_clusters(weights=torch.tensor([0.9, 0.1]), means=means)
    descriptors = torch.tensor([0.6, 0.2] + [0.0] * 510).repeat(2, 1)
    found = read_clusters(mixed).assign(descriptors)
    assert found[0].tolist() == [0, 0]  # nearer to the second, and yet the first's
    assert found[1] == pytest.approx(np.full(2, np.hypot(0.6, 0.2)))
    assert len(read_clusters(resolve(MMDC)).centres) == 10


def with_clusters(**tensors):
    """The reference checkpoint with other tensors in its group `clustering`."""
    reference = resolve("reference")
    groups = {**reference.groups, "clustering": tensors}
    return replace(reference, name="mine", groups=groups)


# The images


def write_odd(root):
    """Pictures of every kind that cameras and programs leave behind; {path: the same as plain RGB}."""
    draws = np.random.default_rng(0)
    grey = draws.integers(0, 256, (40, 50), dtype=np.uint8)
    colour = draws.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    clear = np.dstack([colour, np.full((50, 40), 128, np.uint8)])
    as_rgb = Image.fromarray(grey).convert("RGB")
    kinds = {
        "grey.png": (Image.fromarray(grey), as_rgb),
        "deep/er/grey16.png": (Image.fromarray(grey.astype(np.uint16) * 257), as_rgb),
        "deep/grey.jpg": (Image.fromarray(grey), None),
        "rgba.png": (Image.fromarray(clear), Image.fromarray(colour)),
        "palette.png": (Image.fromarray(grey).convert("P"), None),
        "bits.png": (Image.fromarray(grey).convert("1"), None),
        "cmyk.jpg": (Image.fromarray(colour).convert("CMYK"), None),
        "one.png": (Image.new("L", (1, 1), 200), Image.new("RGB", (1, 1), (200,) * 3)),
        "thin.JPEG": (Image.new("RGB", (3, 90), (9, 99, 199)), None),
    }
    for path, (image, _) in kinds.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path)
    return {path: rgb or Image.open(root / path).convert("RGB") for path, (_, rgb) in kinds.items()}


@pytest.mark.parametrize("checkpoint", ["reference", MMDC])
def test_odd_pictures_are_their_rgb(table, tmp_path, checkpoint):
    plain = write_odd(tmp_path / "odd")
    for path, image in plain.items():
        (tmp_path / "plain" / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "plain" / path, format="PNG")
    found = table("--checkpoint", checkpoint, "--images", tmp_path / "odd")
    assert sorted(found) == sorted(plain)
    assert found == table("--checkpoint", checkpoint, "--images", tmp_path / "plain")
    by_four = table("--checkpoint", checkpoint, "--images", tmp_path / "odd", "--workers", "2", "--batch", "4")
    assert by_four == {path: (cluster, pytest.approx(far, abs=1e-4)) for path, (cluster, far) in found.items()}


@torch.no_grad()
def test_a_picture_is_its_centre_at_the_checkpoints_size(table, tmp_path):
    path = write_image(tmp_path / "wide.png", size=(80, 40))
    seen = np.asarray(Image.open(path).resize((64, 32), Image.Resampling.BILINEAR).crop((16, 0, 48, 32)))
    x = resolve("reference").preprocessing.normalise(torch.tensor(seen).permute(2, 0, 1)[None])
    descriptors = resolve("reference").build_backbone()(x, [EMBEDDING])[EMBEDDING]
    cluster, distance = read_clusters(resolve("reference")).assign(descriptors)
    assert table("--images", tmp_path) == {"wide.png": (cluster[0], pytest.approx(distance[0], abs=1e-4))}


@pytest.mark.parametrize(
    "layout",
    [
        ["a.png", "b/c.png", "b/d/e.webp"],
        ["val/a.png", "b.bmp"],  # a folder with val and no train is none of the layouts that folder: knows
        ["train/cat/a.png", "train/b.png", "val/dog/c.tif"],
        ["cat/a.png", "dog/b.png"],
    ],
)  # fmt: skip
def test_a_plain_folder_may_have_any_layout(table, tmp_path, layout):
    for number, path in enumerate(layout):
        write_image(tmp_path / path, seed=number)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    write_image(tmp_path / ".trash" / "old.png")
    (tmp_path / "._a.png").write_text("macOS leaves these")
    assert sorted(table("--images", tmp_path)) == sorted(layout)
    assert list(table("--images", tmp_path, "--limit", "1")) == [min(layout, key=lambda path: (path.count("/"), path))]


def test_images_are_named_however_they_are_spelled(table, tmp_path):
    for number, path in enumerate(["train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"]):
        write_image(tmp_path / "pets" / path, seed=number)
    folder, plain = table("--images", f"folder:{tmp_path / 'pets'}"), table("--images", tmp_path / "pets")
    assert folder == plain
    assert list(table("--images", f"folder:{tmp_path / 'pets'}", "--split", "val")) == [
        "val/cat/c.png",
        "val/dog/d.png",
    ]
    (tmp_path / "list.txt").write_text("pets/val/dog/d.png\npets/train/cat/a.png\n")
    listed = table("--images", f"list:{tmp_path / 'list.txt'}")
    assert listed == {f"pets/{name}": plain[name] for name in ("train/cat/a.png", "val/dog/d.png")}
    write_shards(tmp_path / "tars", count=2, images=2)
    shards = table("--images", f"shards:{tmp_path / 'tars'}/data-{{00..01}}.tar")
    assert list(shards) == ["data-00.tar:000000", "data-00.tar:000001", "data-01.tar:000002", "data-01.tar:000003"]


def test_a_data_set_goes_before_a_folder_of_its_name(table, tmp_path, monkeypatch):
    write_image(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(table("--images", "digits", "--limit", "5")) == 5
    assert list(table("--images", "./digits")) == ["a.png"]
    assert list(table("--images", ".")) == ["digits/a.png"]


def test_images_can_be_left_out(table, tmp_path):
    for number, path in enumerate(["a.png", "b/c.png", "b/d.png"]):
        write_image(tmp_path / "own" / path, seed=number)
    (tmp_path / "out.txt").write_text("b/c.png\tit is no image\n")
    every = table("--images", tmp_path / "own")
    rest = table("--images", tmp_path / "own", "--exclude", tmp_path / "out.txt")
    assert rest == {name: every[name] for name in ("a.png", "b/d.png")}


# The csv

ODD = [b"a,b.png", b'say "cheese".png', b"two\nlines.png", b"car\rriage.png", b" blanks .png", b"\xff\xfe.png",
       "Zoë 猫.png".encode(), b"'; drop.png", b"=1+1.png", b"sub,dir/x.png"]  # fmt: skip


def test_odd_names_come_back_as_they_were(typed, tmp_path):
    root = os.fsencode(tmp_path / "own")
    os.makedirs(os.path.join(root, b"sub,dir"))
    content = write_image(tmp_path / "picture.png").read_bytes()
    for name in ODD:
        with open(os.path.join(root, name), "wb") as file:
            file.write(content)
    code, out, _ = typed("--images", tmp_path / "own")
    found = read(out)
    assert code == 0
    assert {name.encode("utf-8", "surrogateescape") for name in found} == set(ODD)
    assert len(set(found.values())) == 1  # all are one picture
    assert typed("--images", tmp_path / "own", "--out", tmp_path / "found.csv")[0] == 0
    assert (tmp_path / "found.csv").read_bytes() == out


def test_only_names_that_need_quotes_have_them():
    assert [quoted(name) for name in ("a b.png", "a,b", 'a"b', "a\rb")] == ["a b.png", '"a,b"', '"a""b"', '"a\rb"']
    assert rows(["x", "y,z"], np.array([3, 0]), np.array([0.25, 1.0000001])) == b'x,3,0.25\n"y,z",0,1\n'


def test_out_is_a_summary(typed, tmp_path):
    whole = typed("--limit", "30")[1]
    code, out, err = typed("--limit", "30", "--out", tmp_path / "new" / "found.csv")
    assert (code, err) == (0, "")
    assert (tmp_path / "new" / "found.csv").read_bytes() == whole
    assert os.listdir(tmp_path / "new") == ["found.csv"]
    sizes = np.bincount(clusters(read(whole)), minlength=50)
    share = f"{sizes.max()} images ({100 * sizes.max() / 30:.1f} %)"
    assert out.decode().splitlines() == [
        "images        30",
        f"clusters      {np.count_nonzero(sizes)} of 50 have images",
        f"largest       cluster {sizes.argmax()}, {share}",
        f"written to    {tmp_path / 'new' / 'found.csv'}",
    ]


def test_rows_are_written_as_they_come(typed, tmp_path, monkeypatch):
    sizes, present = [], command.rows

    def spied(*given):
        (temporary,) = tmp_path.iterdir()
        sizes.append(temporary.stat().st_size)
        return present(*given)

    monkeypatch.setattr(command, "rows", spied)
    monkeypatch.setattr(command, "HEADER", b"#" * io.DEFAULT_BUFFER_SIZE + b"\n")  # so much is held back at most
    assert typed("--limit", "9", "--batch", "3", "--out", tmp_path / "found.csv")[0] == 0
    assert len(sizes) == 3
    assert sizes[0] > 0


# What is refused


def test_several_processes_are_refused_before_any_work(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(command, "resolve", None)
    code, out, err = typed("--out", tmp_path / "clusters.csv")
    assert (code, out) == (2, b"")
    assert "torchrun started 2 processes" in err
    assert "try: python -m pretrain.assign" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "random-alexnet32@0"], ["random-alexnet32@0 holds no centres", "--checkpoint reference",
                                                  "pretrain.deepcluster or pretrain.mmdc"]),
        (["--checkpoint", "no-such"], ["there is no checkpoint no-such", "python -m pretrain"]),
        (["--images", "digit"], ["digit is not here (did you mean 'digits'?)", "folder:PATH", ".jpg"]),
        (["--images", "{tmp}/none"], ["none is not here", "looked in: {tmp}/none"]),
        (["--images", "{tmp}/empty"], ["there are no images in {tmp}/empty", ".jpeg"]),
        (["--images", "{tmp}/file.jpg"], ["file.jpg is no folder", "list:FILE"]),
        (["--images", ""], ["folder:PATH"]),
        (["--images", "folder:"], ["folder:PATH"]),
        (["--images", "list:{tmp}/none.txt"], ["there is no list none.txt"]),
        (["--images", "mnist", "--data-dir", "{tmp}/empty"], ["mnist"]),
        (["--split", "tran"], ["no split 'tran'", "did you mean 'train'?", "merged"]),
        (["--limit", "0"], ["--limit 0"]),
        (["--batch", "0"], ["--batch 0"]),
        (["--workers", "-1"], ["--workers -1"]),
        (["--device", "gpu0"], ["'gpu0' is not a device"]),
        (["--exclude", "{tmp}/file.jpg"], ["not files of their own"]),
        (["--out", "{tmp}/empty"], ["{tmp}/empty is a folder", "--out {tmp}/empty/clusters.csv"]),
        (["--out", "{tmp}/file.jpg/below.csv"], ["cannot write {tmp}/file.jpg/below.csv"]),
    ],
    ids=lambda given: " ".join(given[:2]),
)  # fmt: skip
def test_what_cannot_be_says_what_to_type(typed, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr("zoo.datasets.files.ROOT", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_text("no image")
    monkeypatch.setattr(command, "assigned", None)  # all of it is found before any work
    code, out, err = typed(*(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (2, b"")
    for part in said:
        assert part.format(tmp=tmp_path) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file.jpg"]


def test_flags_that_are_not_there(capsys):
    for words in (["--image", "x"], ["--limit", "many"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"text"), lambda path: os.truncate(path, 300)])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(typed, tmp_path, spoil, workers):
    for number in range(12):
        write_image(tmp_path / "own" / f"{number:02}.jpg", size=(40, 40), seed=number)
    spoil(tmp_path / "own" / "08.jpg")
    (tmp_path / "found.csv").write_text("what was here before")
    for more in ([], ["--out", tmp_path / "found.csv"]):
        code, out, err = typed("--images", tmp_path / "own", "--batch", "2", "--workers", workers, *more)
        assert (code, out) == (2, b"")  # the images before it are not said either
        assert "cannot read the image 08.jpg" in err
        assert "--exclude" in err
    assert (tmp_path / "found.csv").read_text() == "what was here before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "own"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"centroids": torch.zeros(50, 3)}, "clustering/centroids is (50, 3), not (k, 256)"),
        ({"centroids": torch.zeros(50)}, "clustering/centroids is (50,), not (k, 256)"),
        ({"pca_mean": torch.zeros(9)}, "clustering/pca_mean is (9,), not (512)"),
        ({"pca_components": torch.zeros(256, 9)}, "clustering/pca_components is (256, 9), not (d, 512)"),
    ],
)  # fmt: skip
def test_clusters_that_do_not_fit(changed, said):
    tensors = {**resolve("reference").groups["clustering"], **changed}
    with pytest.raises(UserError) as caught:
        read_clusters(with_clusters(**tensors))
    assert said in caught.value.happened


@pytest.mark.parametrize("lost", ["centroids", "pca_mean", "pca_components"])
def test_half_of_a_clustering_is_none(lost):
    tensors = {name: t for name, t in resolve("reference").groups["clustering"].items() if name != lost}
    with pytest.raises(UserError, match="mine holds no centres"):
        read_clusters(with_clusters(**tensors))


def test_means_without_a_head_are_none():
    checkpoint = replace(
        random_checkpoint(), groups={**random_checkpoint().groups, "clustering": {"means": torch.eye(4)}}
    )
    with pytest.raises(UserError, match="holds no centres"):
        read_clusters(checkpoint)


def test_a_network_that_gives_no_numbers_ends_with_1(typed, tmp_path):
    broken = with_clusters(**resolve("reference").groups["clustering"])
    broken.groups["backbone"] = {name: t.clone() for name, t in broken.groups["backbone"].items()}
    broken.groups["backbone"]["features.8.weight"].fill_(float("nan"))
    broken.save(tmp_path / "nan.safetensors")
    code, out, err = typed("--checkpoint", tmp_path / "nan.safetensors", "--out", tmp_path / "found.csv")
    assert (code, out) == (1, b"")
    assert "not finite" in err
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]


# Signals, and the command as a process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(tmp_path, monkeypatch, capsysbinary, number, code):
    found, calls = Clusters.assign, []

    def interrupted(self, descriptors):
        calls.append(len(os.listdir(tmp_path)))
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return found(self, descriptors)

    monkeypatch.setattr(Clusters, "assign", interrupted)
    try:
        ended = main([*PLAIN, "--limit", "9", "--batch", "3", "--out", str(tmp_path / "found.csv")])
    except SystemExit as error:
        ended = error.code
    assert (ended, calls) == (code, [1, 1])
    assert os.listdir(tmp_path) == []
    said = capsysbinary.readouterr()
    assert said.out == b""
    assert said.err.endswith(b"ed; nothing was written\n")


def start(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pretrain.assign", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def assign_and_die(path):
    with dying("zoo.clustering.assigning.Clusters.assign", 2):
        sys.exit(main([*PLAIN, "--limit", "9", "--batch", "3", "--out", str(path)]))


def test_a_kill_leaves_no_csv(tmp_path):
    assert exit_code(assign_and_die, tmp_path / "found.csv") == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".found")


def test_the_bare_command(tmp_path):
    with start("--threads", "1", "--runs", tmp_path) as running:
        out, err = running.communicate()
    assert (running.returncode, err) == (0, b"")
    assert len(read(out)) == 1797
    assert not list(tmp_path.iterdir())


def test_help_is_for_a_person(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m pretrain.assign")
    for part in ("--images STR", "--exclude", "--split", "image, cluster and distance", "a folder, of which every"):
        assert part in said
    assert str(ROOT) not in said
