"""The engines that detection and segmentation can be trained with besides torchvision: detectron2 and mmsegmentation.

`make engines` installs both; nothing else of the suite needs them. They are imported through here, because releases as
old as theirs miss what newer Pillow, numpy and setuptools dropped, and are installed without their compiled parts.
"""

from transfer.engines.loading import details_of, load_detectron2, load_mmseg, versions

__all__ = ["details_of", "load_detectron2", "load_mmseg", "versions"]
