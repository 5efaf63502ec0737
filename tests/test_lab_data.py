"""The data of the lab: the digits as they come, CIFAR-10 from small files in the published format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cifar10_files import CLASSES, write_cifar10
from sklearn import datasets
from torch.utils.data import DataLoader

from fxprune.errors import ArgumentError, UnknownNameError
from fxprune.lab.data import batch_list, load_cifar10, load_data, load_digits, train_loader


def _all(dataset: object) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = next(iter(DataLoader(dataset, batch_size=len(dataset))))  # type: ignore[arg-type]
    return images, labels


def test_digits_are_split_in_three_with_every_class_in_proportion() -> None:
    data = load_digits(seed=0)
    parts = [_all(part) for part in (data.train, data.validation, data.test)]
    assert sum(len(labels) for _, labels in parts) == 1797
    assert torch.equal(
        torch.cat([labels for _, labels in parts]).bincount(),
        torch.from_numpy(datasets.load_digits().target).bincount(),
    )
    for images, labels in parts:
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == torch.float32
        share = labels.bincount() / len(labels)
        assert (share - 0.1).abs().max() < 0.01
    assert data.classes == tuple("0123456789")
    assert all(str(len(labels)) in data.note for _, labels in parts)


def test_no_digit_is_in_two_parts() -> None:
    data = load_digits(seed=0)
    images = torch.cat([_all(data.validation)[0], _all(data.test)[0], data.train.base.tensors[0]])  # type: ignore[attr-defined]
    assert len(images.flatten(1).unique(dim=0)) == 1797


def test_digits_are_the_originals_enlarged_and_normalised() -> None:
    data = load_digits(seed=0)
    train = data.train.base.tensors[0]  # type: ignore[attr-defined]
    assert train.mean().abs() < 1e-4
    assert abs(train.std() - 1) < 1e-3
    assert torch.equal(train[:, 0], train[:, 2])
    # Averaging 4x4 blocks nearly undoes the enlargement, and normalising is linear: one original must be like this.
    small = torch.nn.functional.avg_pool2d(train[:, :1], 4).flatten(1)
    originals = torch.from_numpy(datasets.load_digits().images).float().flatten(1)
    correlation = torch.corrcoef(torch.cat([small[:1], originals]))[0, 1:]
    assert correlation.max() > 0.97


def test_the_split_follows_the_seed() -> None:
    first, again, other = (_all(load_digits(seed).test)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_digits_are_shifted_and_others_are_not() -> None:
    data = load_digits()
    assert not torch.equal(_all(data.train)[0], _all(data.train)[0])
    assert torch.equal(_all(data.test)[0], _all(data.test)[0])


def test_the_loader_follows_its_seed() -> None:
    data = load_digits()

    def first_labels(seed: int) -> torch.Tensor:
        return next(iter(train_loader(data, 64, seed, torch.device("cpu"))))[1]

    assert torch.equal(first_labels(1), first_labels(1))
    assert not torch.equal(first_labels(1), first_labels(2))


def test_batches_hold_every_image_once_in_order() -> None:
    data = load_digits()
    batches = batch_list(data.test, 100, torch.device("cpu"))
    images, labels = _all(data.test)
    assert torch.equal(torch.cat([x for x, _ in batches]), images)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    assert max(len(y) for _, y in batches) == 100


def test_cifar10_is_read_from_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path / "cifar10", monkeypatch)
    data = load_cifar10(tmp_path / "cifar10")
    images, labels = _all(data.test)
    expected = torch.from_numpy(pixels["test_batch"]).reshape(-1, 3, 32, 32).float() / 255
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == [i % 10 for i in range(12)]
    assert len(data.train) == 60  # type: ignore[arg-type]
    assert data.validation is data.test
    assert data.classes == tuple(CLASSES)
    assert "60 images for training, 12 for the test" in data.note


def test_cifar10_is_augmented_as_in_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    data = load_cifar10(tmp_path)
    image = torch.from_numpy(pixels["data_batch_1"][0]).reshape(3, 32, 32).float() / 255
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    crops = [padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    possible = torch.stack([*crops, *(crop.flip(2) for crop in crops)])
    seen = set()
    for _ in range(20):
        drawn, label = data.train[0]
        matches = (possible - drawn).abs().amax((1, 2, 3)) < 1e-6
        assert matches.any()
        seen.add(int(matches.nonzero()[0]))
        assert label == 0
    assert len(seen) > 10


def test_the_folder_of_batches_itself_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    assert len(load_cifar10(tmp_path / "cifar-10-batches-py").test) == 12  # type: ignore[arg-type]


def test_missing_cifar10_says_where_it_belongs_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        load_cifar10(tmp_path / "data")
    message = str(caught.value)
    assert str(tmp_path / "data" / "cifar-10-batches-py") in message
    assert "cifar-10-python.tar.gz" in message
    assert "https://www.cs.toronto.edu/" in message
    assert f"tar -xzf cifar-10-python.tar.gz -C {tmp_path / 'data'}" in message


def test_a_damaged_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ArgumentError, match="not complete"):
        load_cifar10(tmp_path)


def test_data_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data" / "cifar10", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert load_data("digits").name == "digits"
    assert load_data("cifar10").name == "cifar10"
    with pytest.raises(UnknownNameError, match="no data set 'cifar'; nearest: 'cifar10'"):
        load_data("cifar")
    with pytest.raises(ArgumentError, match="digits come with scikit-learn"):
        load_data("digits", tmp_path)
