"""Evaluation: COCO, PASCAL VOC and ILSVRC average precision, tables and curves."""
