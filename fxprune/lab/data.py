"""The data of the lab: scikit-learn's handwritten digits, which come with the package, and CIFAR-10, which does not."""

from __future__ import annotations

__all__ = ["DATASETS", "LabData", "batch_list", "load_cifar10", "load_data", "load_digits", "train_loader"]

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToTensor

from fxprune.errors import ArgumentError, UnknownNameError, nearest_names

IMAGE_SIZE = 32
_TEST_DIGITS = 360
_VALIDATION_DIGITS = 180
_BATCHES_FOLDER = CIFAR10.base_folder


@dataclass(frozen=True)
class LabData:
    """Images of shape ``(3, 32, 32)`` with their class indices, split in three.

    Attributes:
        name: ``"digits"`` or ``"cifar10"``.
        train: What the weights are fitted to, with augmentation where there is one.
        validation: What checkpoints are chosen by and sensitivity is read from.
        test: What accuracies are reported on.
        classes: Names of the classes.
        workers: Processes that a loader of the training images should use.
        note: Where the images come from and how they were split.
    """

    name: str
    train: Dataset[tuple[Tensor, ...]]
    validation: Dataset[tuple[Tensor, ...]]
    test: Dataset[tuple[Tensor, ...]]
    classes: tuple[str, ...]
    workers: int
    note: str


def load_digits(seed: int = 0) -> LabData:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 32x32 and repeated over three channels.

    The split is stratified and depends on ``seed`` alone: 1,257 images for training, 180 for validation, 360 for the
    test. Brightness is normalised with the mean and standard deviation of the training images. A training image is
    shifted by up to 4 pixels, half an original pixel in the mean, each time it is drawn.

    Args:
        seed: Of the split.
    """
    digits = datasets.load_digits()
    labels = torch.from_numpy(digits.target).long()
    small = torch.from_numpy(digits.images).float()[:, None]
    images = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    rest, test = train_test_split(torch.arange(len(labels)), test_size=_TEST_DIGITS, random_state=seed, stratify=labels)
    train, validation = train_test_split(rest, test_size=_VALIDATION_DIGITS, random_state=seed, stratify=labels[rest])
    images = ((images - images[train].mean()) / images[train].std()).expand(-1, 3, -1, -1).contiguous()
    shift = RandomCrop(IMAGE_SIZE, padding=4, padding_mode="edge")
    return LabData(
        name="digits",
        train=_Augmented(TensorDataset(images[train], labels[train]), shift),
        validation=TensorDataset(images[validation], labels[validation]),
        test=TensorDataset(images[test], labels[test]),
        classes=tuple(str(name) for name in digits.target_names),
        workers=0,
        note=(
            f"scikit-learn's digits, brought to 3x{IMAGE_SIZE}x{IMAGE_SIZE}: {len(train)} images for training, "
            f"{len(validation)} for validation, {len(test)} for the test"
        ),
    )


def load_cifar10(data_dir: str | os.PathLike[str]) -> LabData:
    """Return CIFAR-10 as the lab prepares it, from the python batches under ``data_dir``. Nothing is downloaded.

    Training images are padded by 4, cropped at random and flipped at random; brightness is in [0, 1]. As in the lab,
    the 10,000 test images are the validation images too: its published checkpoint was trained on all the others.

    Args:
        data_dir: The folder that contains ``cifar-10-batches-py``, as in the lab, or that folder itself.

    Raises:
        ArgumentError: The files are not there, or are not the published ones.
    """
    folder = Path(data_dir)
    root = folder.parent if folder.name == _BATCHES_FOLDER else folder
    augment = Compose([RandomCrop(IMAGE_SIZE, padding=4), RandomHorizontalFlip(), ToTensor()])
    try:
        train = CIFAR10(root, train=True, transform=augment)
        test = CIFAR10(root, train=False, transform=ToTensor())
    except RuntimeError as error:
        raise ArgumentError(
            f"CIFAR-10 is not complete in {root / _BATCHES_FOLDER}. There must be data_batch_1 to data_batch_5, "
            f"test_batch and batches.meta, unchanged. Download {CIFAR10.filename} ({CIFAR10.url}) and unpack it in "
            f"{root}: tar -xzf {CIFAR10.filename} -C {root}"
        ) from error
    return LabData(
        name="cifar10",
        train=train,
        validation=test,
        test=test,
        classes=tuple(train.classes),
        workers=min(4, os.cpu_count() or 1),
        note=(
            f"CIFAR-10: {len(train)} images for training, {len(test)} for the test; as in the lab the test images are "
            f"the validation images too"
        ),
    )


DATASETS: tuple[str, ...] = ("digits", "cifar10")
"""Names that :func:`load_data` takes."""


def load_data(name: str, data_dir: str | os.PathLike[str] | None = None, seed: int = 0) -> LabData:
    """Return one of the lab's data sets by name.

    Args:
        name: ``"digits"`` or ``"cifar10"``.
        data_dir: Where CIFAR-10 lies, by default ``data/cifar10``; the digits need no folder.
        seed: Of the digits' split; CIFAR-10 comes split.

    Raises:
        UnknownNameError: There is no data set of that name.
        ArgumentError: The data set is not in ``data_dir``, or a folder was given for the digits.
    """
    if name == "digits":
        if data_dir is not None:
            raise ArgumentError(f"the digits come with scikit-learn and are in no folder; leave out {str(data_dir)!r}")
        return load_digits(seed)
    if name == "cifar10":
        return load_cifar10("data/cifar10" if data_dir is None else data_dir)
    raise UnknownNameError(f"there is no data set {name!r}; {nearest_names(name, DATASETS)}")


def train_loader(data: LabData, batch_size: int, seed: int, device: torch.device) -> DataLoader[tuple[Tensor, ...]]:
    """Return shuffled batches of the training images; the same seed gives the same order and augmentation.

    Args:
        data: The data set.
        batch_size: Images in a batch.
        seed: Of order and augmentation.
        device: Where the batches will go; for a GPU they are put into pinned memory.
    """
    return DataLoader(
        data.train,
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        num_workers=data.workers,
        persistent_workers=data.workers > 0,
        pin_memory=device.type == "cuda",
    )


def batch_list(
    dataset: Dataset[tuple[Tensor, ...]], batch_size: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Return all images of a data set in batches on the device, made once so that every evaluation starts at once."""
    return [(images.to(device), labels.to(device)) for images, labels in DataLoader(dataset, batch_size=batch_size)]


class _Augmented(Dataset[tuple[Tensor, ...]]):
    """A data set whose images are transformed anew each time they are drawn."""

    def __init__(self, base: TensorDataset, transform: Callable[[Tensor], Any]) -> None:
        self.base = base
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = self.base[index]
        return self.transform(image), label

    def __len__(self) -> int:
        return len(self.base)
