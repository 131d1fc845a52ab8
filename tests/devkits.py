"""Small devkits of Pascal VOC, written by hand in the official format."""

import numpy as np
from pictures import write_image
from PIL import Image

from zoo.voc.devkit import CLASSES

SIZE = (14, 12)  # width, height
MAIN = {"train": 3, "val": 3, "test": 3}
SEGMENTATION = {"train": 2, "val": 1, "test": 1}  # the first of these have a mask
TRAINVAL = ("train", "val")


def joined(counts):
    """With the set trainval."""
    return {**counts, "trainval": counts["train"] + counts["val"]}


def shrink(monkeypatch, kind, **more):
    """Bring the counts of a class of devkits down to what write_devkit writes; those of the sets it publishes."""
    counts = {"Main": joined(MAIN) | more, "Segmentation": joined(SEGMENTATION)}
    published = {of: {split: counts[of][split] for split in kind.counts[of]} for of in counts}
    monkeypatch.setattr(kind, "counts", published)


def names_of(split, of="Main"):
    """The images of a set, in its order."""
    if split == "trainval":
        return names_of("train", of) + names_of("val", of)
    first = {"train": 10, "val": 20, "test": 30}[split]
    return [f"{first + n:06}" for n in range({"Main": MAIN, "Segmentation": SEGMENTATION}[of][split])]


def shown(name):
    """{class: 1 or 0} of an image: each second class; in the third image of a set they are difficult."""
    number = int(name) % 10
    return dict.fromkeys(CLASSES[number % 2 :: 2], 0 if number == 2 else 1)


def write_devkit(root, year="2007"):
    """VOCdevkit/VOC<year> below root; the folder."""
    kit = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (kit / folder).mkdir(parents=True)
    splits = ("train", "val", "trainval", *(("test",) if year == "2007" else ()))
    for name in {name for split in splits for name in names_of(split)}:
        write_image(kit / f"JPEGImages/{name}.jpg", SIZE, seed=int(name))
        (kit / f"Annotations/{name}.xml").write_text(xml(name, year))
    for split in splits:
        for of in ("Main", "Segmentation"):
            (kit / f"ImageSets/{of}/{split}.txt").write_text("".join(f"{name}\n" for name in names_of(split, of)))
        for name in names_of(split, "Segmentation"):
            write_mask(kit / f"SegmentationClass/{name}.png")
        for label in CLASSES:
            lines = [f"{name} {shown(name).get(label, -1):2d}\n" for name in names_of(split)]
            (kit / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(lines))
    return kit


def write_mask(path, size=SIZE, values=(0, 1, 20, 255)):
    """A mask with stripes of these values."""
    mask = Image.fromarray(np.resize(np.array(values, dtype=np.uint8), size[::-1]))
    mask.putpalette([channel for level in range(256) for channel in (level, 0, 255 - level)])
    mask.save(path)


def xml(name, year):
    """An annotation of an image that shows what it shows."""
    width, height = SIZE
    objects = "".join(one(label, 1 - said) for label, said in shown(name).items())
    return (
        f"<annotation>\n\t<folder>VOC{year}</folder>\n\t<filename>{name}.jpg</filename>\n"
        "\t<source>\n\t\t<database>The VOC2007 Database</database>\n\t\t<image>flickr</image>\n\t</source>\n"
        "\t<owner>\n\t\t<flickrid>?</flickrid>\n\t\t<name>?</name>\n\t</owner>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )


def one(label, difficult):
    """An object, as VOC2007 writes it."""
    return (
        f"\t<object>\n\t\t<name>{label}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>1</truncated>\n"
        f"\t\t<difficult>{difficult}</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>1</xmin>\n\t\t\t<ymin>2</ymin>\n"
        f"\t\t\t<xmax>{SIZE[0]}</xmax>\n\t\t\t<ymax>{SIZE[1]}</ymax>\n\t\t</bndbox>\n\t</object>\n"
    )
