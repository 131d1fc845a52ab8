"""detectron2 and mmsegmentation as `make engines` installs them: they are imported, built, trained and evaluated.

Run by `make test-engines`; plain `make test` leaves this folder out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import SIZE, names_of, write_devkit
from PIL import Image
from vocs import generate_few

from transfer.engines import load_detectron2, load_mmseg, versions
from transfer.scores import to_edges
from zoo.voc.masks import read_mask
from zoo.voc.minivoc import MiniVoc

CAT = 7  # in VOC's order of classes


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> MiniVoc:
    return generate_few(tmp_path_factory.mktemp("minivoc"))


def test_what_stands_in_is_not_left_behind() -> None:
    load_detectron2()
    load_mmseg()
    assert not {"detectron2._C", "mmcv._ext"} & set(sys.modules)
    assert not {"str", "int", "float", "object"} & set(vars(np))
    assert not hasattr(Image, "LINEAR")


def test_importing_them_warns_of_nothing() -> None:
    """In a process of its own: here they may have been imported already."""
    # torch is imported first: what it says is its own affair
    program = "import torch, matplotlib, warnings; warnings.simplefilter('error')\n"
    program += "from transfer.engines import load_detectron2, load_mmseg; load_detectron2(); load_mmseg()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_versions_are_known() -> None:
    found = versions("detectron2") | versions("mmseg")
    assert "0.6" in {found.get("pb1-detectron2"), found.get("detectron2")}
    assert found["mmsegmentation"] == "1.2.2"


# detectron2


def test_a_faster_rcnn_of_the_model_zoo_detects_on_the_cpu() -> None:
    load_detectron2()
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    config = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml")
    config.MODEL.DEVICE = "cpu"
    config.MODEL.RPN.PRE_NMS_TOPK_TEST = config.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    model = build_model(config).eval()
    with torch.no_grad():
        (found,) = model([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])
    assert found["instances"].image_size == (32, 48)
    assert config.MODEL.ROI_HEADS.NUM_CLASSES == 20


def test_what_needs_the_missing_code_says_so() -> None:
    load_detectron2()
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    if "detectron2" in versions("detectron2"):
        pytest.skip("upstream's installation has it")
    with pytest.raises(NotImplementedError, match=r"is compiled code of detectron2\._C"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


def test_its_evaluator_reads_a_devkit(tmp_path: Path) -> None:
    load_detectron2()
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_pascal_voc
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    name = f"voc_{tmp_path.name}"
    register_pascal_voc(name, str(write_devkit(tmp_path)), "test", 2007)
    held = DatasetCatalog.get(name)
    assert [entry["image_id"] for entry in held] == names_of("test")
    assert (held[0]["width"], held[0]["height"]) == SIZE
    assert held[0]["annotations"][0]["bbox"] == [0, 1, *SIZE]
    assert MetadataCatalog.get(name).thing_classes[CAT] == "cat"
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for entry in held:
        found = Instances(SIZE[::-1])
        found.pred_boxes = Boxes(torch.tensor([one["bbox"] for one in entry["annotations"]], dtype=torch.float32))
        found.pred_classes = torch.tensor([one["category_id"] for one in entry["annotations"]])
        found.scores = torch.ones(len(found))
        evaluator.process([entry], [{"instances": found}])
    assert evaluator.evaluate()["bbox"] == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})


def test_its_loader_reads_minivoc(few: MiniVoc) -> None:
    load_detectron2()
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    held = load_voc_instances(str(few.location), "test", few.classes)
    assert [entry["image_id"] for entry in held] == few.ids("test")
    for entry, annotation in zip(held, few.annotations("test"), strict=True):
        assert (entry["height"], entry["width"]) == annotation.size
        found = [(few.classes[one["category_id"]], tuple(one["bbox"])) for one in entry["annotations"]]
        assert found == [(box.name, tuple(to_edges(np.array(box.corners)).tolist())) for box in annotation.boxes]


# mmsegmentation


def dataset(kit: Path, split: str) -> dict:
    steps = ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
    return dict(
        type="PascalVOCDataset",
        data_root=str(kit),
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file=f"ImageSets/Segmentation/{split}.txt",
        pipeline=[dict(type=step) for step in steps],
    )


def test_its_dataset_reads_a_devkit(tmp_path: Path) -> None:
    load_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")  # the pipeline's steps are looked up there
    held = DATASETS.build(dataset(write_devkit(tmp_path), "train"))
    assert len(held) == len(names_of("train", "Segmentation"))
    assert held.metainfo["classes"][1 + CAT] == "cat"
    first = held[0]
    assert first["inputs"].shape == (3, *SIZE[::-1])
    assert set(first["data_samples"].gt_sem_seg.data.unique().tolist()) == {0, 1, 20, 255}  # the palette's indices


def test_its_dataset_reads_minivoc(few: MiniVoc) -> None:
    """Unchanged, its ten classes under the names of VOC's first ten: it takes no others."""
    load_mmseg()
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    held = DATASETS.build(dataset(few.location, "test"))
    assert [Path(held.get_data_info(number)["img_path"]).stem for number in range(len(held))] == few.ids("test")
    for entry, annotation, mask in zip(held, few.annotations("test"), few.masks("test"), strict=True):
        wanted = read_mask(mask, annotation.size, len(few.classes))
        assert np.array_equal(entry["data_samples"].gt_sem_seg.data[0].numpy(), wanted)


def test_its_mean_iou() -> None:
    load_mmseg()
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric()
    metric.dataset_meta = {"classes": ("background", "cat", "dog")}
    label = torch.tensor([[0, 0, 1, 255], [0, 1, 1, 2]])
    given = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 2]])
    metric.process({}, [{"pred_sem_seg": {"data": given[None]}, "gt_sem_seg": {"data": label[None]}}])
    found = metric.evaluate(1)
    assert found["mIoU"] == pytest.approx(100 * (2 / 4 + 2 / 4 + 1) / 3, abs=0.01)  # it rounds to two decimals
    assert found["aAcc"] == pytest.approx(100 * 5 / 7, abs=0.01)


def configuration(kit: Path, folder: Path, steps: int, resume: bool) -> dict:
    """A run of mmengine: a convolution and an FCN head, a checkpoint each step."""
    norm = dict(type="BN")
    images = dict(type="SegDataPreProcessor", mean=[124, 116, 104], std=[58, 57, 57], bgr_to_rgb=True, size=SIZE[::-1])
    loss = dict(type="CrossEntropyLoss", avg_non_ignore=True)
    head = dict(type="FCNHead", in_channels=4, channels=4, num_convs=1, num_classes=21, norm_cfg=norm, in_index=0)
    head |= dict(concat_input=False, align_corners=False, loss_decode=loss)
    model = dict(type="EncoderDecoder", data_preprocessor=images, backbone=dict(type="Stem"), decode_head=head)
    return dict(
        default_scope="mmseg",
        work_dir=str(folder),
        model=model | dict(train_cfg={}, test_cfg=dict(mode="whole")),
        train_dataloader=dict(batch_size=2, sampler=dict(type="InfiniteSampler"), dataset=dataset(kit, "train")),
        val_dataloader=dict(batch_size=1, sampler=dict(type="DefaultSampler"), dataset=dataset(kit, "val")),
        val_evaluator=dict(type="IoUMetric"),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=steps),
        val_cfg=dict(type="ValLoop"),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
        default_hooks=dict(
            logger=dict(type="LoggerHook", log_metric_by_epoch=False),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1),
        ),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        experiment_name=f"{folder.name}-{steps}",
        resume=resume,
    )


def test_its_runner_trains_evaluates_and_continues(tmp_path: Path) -> None:
    load_mmseg()
    from mmengine.config import Config
    from mmengine.runner import Runner
    from mmseg.registry import MODELS

    @MODELS.register_module(force=True)
    class Stem(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.conv(x),)

    kit = write_devkit(tmp_path)
    for steps, resume in ((2, False), (3, True)):
        runner = Runner.from_cfg(Config(configuration(kit, tmp_path / "run", steps, resume), format_python_code=False))
        runner.train()
        assert runner.iter == steps
    held = torch.load(tmp_path / "run/iter_3.pth", weights_only=True)
    assert held["meta"]["iter"] == 3
    assert len(held["message_hub"]["log_scalars"]["train/loss"].data[0]) == 3  # its history was read, not begun anew
    assert held["optimizer"]["state"]
