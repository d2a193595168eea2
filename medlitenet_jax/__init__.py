"""MedLiteNet: a lightweight CNN-Transformer hybrid for skin-lesion segmentation."""

__version__ = "0.1.0"
