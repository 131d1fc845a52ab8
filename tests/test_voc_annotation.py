"""Annotations in the words of VOC2007 and VOC2012: what is read, what is refused, what is written."""

from dataclasses import replace

import pytest

from results.errors import UserError
from zoo.voc.annotation import Annotation, Box, format_annotation, read_annotation
from zoo.voc.devkit import CLASSES

VOC2007 = """\
<annotation>
	<folder>VOC2007</folder>
	<filename>000035.jpg</filename>
	<source>
		<database>The VOC2007 Database</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
		<flickrid>338126319</flickrid>
	</source>
	<owner>
		<flickrid>GabaGaba</flickrid>
		<name>Gabba Gabba</name>
	</owner>
	<size>
		<width>500</width>
		<height>375</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
	<object>
		<name>person</name>
		<pose>Frontal</pose>
		<truncated>1</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>1</xmin>
			<ymin>96</ymin>
			<xmax>191</xmax>
			<ymax>361</ymax>
		</bndbox>
	</object>
	<object>
		<name>diningtable</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox>
			<xmin>3</xmin>
			<ymin>304</ymin>
			<xmax>500</xmax>
			<ymax>375</ymax>
		</bndbox>
	</object>
</annotation>
"""
VOC2012 = """\
<annotation>
	<filename>2011_003353.jpg</filename>
	<folder>VOC2012</folder>
	<object>
		<name>person</name>
		<actions>
			<jumping>0</jumping>
			<phoning>1</phoning>
		</actions>
		<bndbox>
			<xmax>375</xmax>
			<xmin>130</xmin>
			<ymax>470</ymax>
			<ymin>45.70000076293945</ymin>
		</bndbox>
		<difficult>0</difficult>
		<occluded>1</occluded>
		<point>
			<x>256</x>
			<y>252</y>
		</point>
		<part>
			<name>head</name>
			<bndbox>
				<xmin>140</xmin>
				<ymin>50</ymin>
				<xmax>9999</xmax>
				<ymax>99</ymax>
			</bndbox>
		</part>
	</object>
	<segmented>0</segmented>
	<size>
		<depth>3</depth>
		<height>500</height>
		<width>375</width>
	</size>
</annotation>
"""


def read(tmp_path, text, name="000035"):
    path = tmp_path / f"{name}.xml"
    path.write_text(text)
    return read_annotation(path, CLASSES)


def refused(tmp_path, text):
    """What the error says, which names the file."""
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert caught.value.looked == str(tmp_path / "000035.xml")
    assert caught.value.happened.startswith("the annotation 000035.xml ")
    assert caught.value.fix
    return caught.value.happened.removeprefix("the annotation 000035.xml ")


def test_an_annotation_of_voc2007(tmp_path):
    person = Box("person", (1, 96, 191, 361), truncated=True, pose="Frontal")
    table = Box("diningtable", (3, 304, 500, 375), difficult=True)
    assert read(tmp_path, VOC2007) == Annotation("000035", (375, 500), (person, table))


def test_an_annotation_of_voc2012_with_fractions_parts_and_actions(tmp_path):
    found = read(tmp_path, VOC2012, "2011_003353")
    box = Box("person", (130, 45.70000076293945, 375, 470), occluded=True)
    assert found == Annotation("2011_003353", (500, 375), (box,))
    assert (box.truncated, box.difficult, box.pose) == (False, False, "Unspecified")


def test_an_image_without_objects(tmp_path):
    text = VOC2007[: VOC2007.index("\t<object>")] + "</annotation>"
    assert read(tmp_path, text).boxes == ()


def test_other_classes_can_be_asked_for(tmp_path):
    path = tmp_path / "1.xml"
    path.write_text(VOC2007.replace("person", "seven").replace("diningtable", "one"))
    assert [box.name for box in read_annotation(path, ("one", "seven")).boxes] == ["seven", "one"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</object>\n</annotation>\n", "", "is not XML: no element found"),
        (VOC2007, "", "is not XML: no element found"),
        (VOC2007, "<html></html>", "is of something else: it holds <html>, not <annotation>"),
        ("<width>500</width>", "", "does not say how large the image is (height 375, width ?)"),
        ("<height>375</height>", "<height>0</height>", "does not say how large the image is (height 0, width 500)"),
        ("<width>500</width>", "<width>5e2</width>", "does not say how large the image is (height 375, width 5e2)"),
        ("<name>person</name>", "<name>persn</name>", "object 1 the class 'persn' (did you mean 'person'?)"),
        ("<name>diningtable</name>", "", "gives object 2 the class ''"),
        ("<difficult>1</difficult>", "<difficult>yes</difficult>", "says <difficult> of object 2 (diningtable)"),
        ("<xmin>3</xmin>", "", "has no numbers for the box of object 2 (diningtable): xmin ?, ymin 304"),
        ("<xmin>3</xmin>", "<xmin>three</xmin>", "has no numbers for the box of object 2 (diningtable): xmin three"),
        ("<xmin>3</xmin>", "<xmin>nan</xmin>", "has no numbers for the box of object 2 (diningtable): xmin nan"),
        ("<xmin>1</xmin>", "<xmin>192</xmin>", "has an inverted box for object 1 (person): xmin 192"),
        ("<ymax>361</ymax>", "<ymax>95</ymax>", "has an inverted box for object 1 (person): xmin 1, ymin 96, xmax 191"),
        ("<xmin>1</xmin>", "<xmin>-1</xmin>", "has a box outside the image (500 x 375 pixels) for object 1 (person)"),
        ("<xmax>500</xmax>", "<xmax>502</xmax>", "has a box outside the image (500 x 375 pixels) for object 2"),
        ("<ymax>375</ymax>", "<ymax>377</ymax>", "has a box outside the image (500 x 375 pixels) for object 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert VOC2007.count(old) == 1
    assert message in refused(tmp_path, VOC2007.replace(old, new))


def test_an_object_without_a_box_is_named(tmp_path):
    start, end = VOC2007.rindex("\t\t<bndbox>"), VOC2007.rindex("\t</object>")
    assert refused(tmp_path, VOC2007[:start] + VOC2007[end:]) == "has no <bndbox> for object 2 (diningtable)"


def test_a_part_is_no_box(tmp_path):
    start, end = VOC2012.index("\t\t<bndbox>"), VOC2012.index("\t\t<difficult>")
    assert refused(tmp_path, VOC2012[:start] + VOC2012[end:]) == "has no <bndbox> for object 1 (person)"


def test_a_box_may_touch_the_border_and_pass_it_by_a_rounding(tmp_path):
    whole = VOC2007.replace("<xmin>3<", "<xmin>1<").replace("<ymin>304<", "<ymin>1<")
    assert read(tmp_path, whole).boxes[1].corners == (1, 1, 500, 375)
    rounded = VOC2007.replace("<xmin>3<", "<xmin>0.5<").replace("<ymax>375<", "<ymax>375.5<")
    assert read(tmp_path, rounded).boxes[1].corners == (0.5, 304, 500, 375.5)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"the annotation 7\.xml cannot be read: No such file"):
        read_annotation(tmp_path / "7.xml", CLASSES)
    (tmp_path / "7.xml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"the annotation 7\.xml is not XML"):
        read_annotation(tmp_path / "7.xml", CLASSES)


def test_what_is_written_is_read_again(tmp_path):
    boxes = (
        Box("cat", (1, 1, 20, 10), difficult=True),
        Box("dog", (2, 3, 2, 3), truncated=True, pose="Left"),
        Box("dog", (5, 5, 19, 9), occluded=True),
    )
    annotation = Annotation("000007", (10, 20), boxes)
    assert read(tmp_path, format_annotation(annotation, "VOC2007"), "000007") == annotation
    assert read(tmp_path, format_annotation(replace(annotation, boxes=()), "VOC2007"), "000007").boxes == ()
