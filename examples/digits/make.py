"""Writes digits.txt beside this file: scikit-learn's handwritten digits, one image a line.

Pixels are single base-17 digits (0 to g, white to black), row by row, then a space and the label.
Needs scikit-learn; made with version 1.9.1.
"""

from pathlib import Path

from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
assert images.shape == (1797, 64) and images.min() == 0 and images.max() == 16

lines = [
    "".join("0123456789abcdefg"[int(pixel)] for pixel in image) + f" {label}\n"
    for image, label in zip(images, labels)
]
Path(__file__).with_name("digits.txt").write_text("".join(lines))
