"""Tasks x what learns x Sobel x proposals: two steps each on 16 images; and AlexNet and VGG-16 at their own size."""

from itertools import product

import numpy as np
import pytest
import torch
from trainings import start
from vocs import generate_few

from transfer.voc_classification import VocClassification
from transfer.voc_detection import VocDetection
from transfer.voc_segmentation import VocSegmentation

TRAINED, CHECKPOINTS = ("fc6-8", "all"), ("random-alexnet32@0", "random-alexnet32-sobel@0")
# AlexNet and VGG-16 see 224 x 224 pixels (detection: 224 x 224 to 224 x 299), as in their checkpoints
FULL = {
    VocClassification: ("--batch", "1"),
    VocDetection: ("--batch", "1", "--sides", "224", "--side", "224", "--longest", "299", "--rois", "16"),
    VocSegmentation: ("--batch", "1", "--crop", "224", "--scale", "1"),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where proposals are kept, to be searched once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(few, cache, tmp_path, capsys):
    """Run a command, which must end well; what it prints."""

    def start_in(kind, checkpoint, *words):
        words = ("--checkpoint", checkpoint, "--cache", str(cache), *words)
        assert start(kind, tmp_path, *words, dataset=few) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return start_in


def search_there():
    """Skip unless there is OpenCV with its selective search."""
    if not hasattr(pytest.importorskip("cv2", reason="needs make engines"), "ximgproc"):
        pytest.skip("needs make engines")


COMBINED = [
    (VocClassification, ()),
    (VocClassification, ("--train-bn",)),
    (VocDetection, ("--proposals", "rpn")),
    (VocDetection, ("--proposals", "selective-search")),
    (VocSegmentation, ()),
]


@pytest.mark.parametrize(
    ("kind", "words", "trained", "checkpoint"),
    [
        (kind, words, trained, checkpoint)
        for (kind, words), trained, checkpoint in product(COMBINED, TRAINED, CHECKPOINTS)
        if "--train-bn" not in words or trained == "fc6-8"  # with all they learn anyway
    ],
)
def test_two_steps_on_sixteen_images(kind, words, trained, checkpoint, run):
    if "selective-search" in words:
        search_there()
    told = run(kind, checkpoint, "--trained", trained, "--iterations", "2", "--limit", "16", *words)
    assert "a smoke run on 16 images (--limit): nothing is recorded" in told


@torch.no_grad()
def draw_fast(values, std, generator):
    """Initial values by torch, which takes a tenth of the time."""
    values.normal_(0, std)


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("backbone", ["alexnet", "vgg16"])
def test_a_step_of_networks_of_full_size(kind, backbone, run, monkeypatch):
    monkeypatch.setattr("zoo.state.WORTH", np.inf)  # no state: VGG-16 would write some GB
    monkeypatch.setattr("zoo.backbones.backbone.fill_normal", draw_fast)
    assert "smoke run on 1 images" in run(
        kind, f"random-{backbone}@0", "--iterations", "1", "--limit", "1", *FULL[kind]
    )
