"""Classifiers on images in a folder per class: built, trained, scored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm

ARCH = 'nano'
BATCH = 16
LEARNING_RATE = 1e-3


def build_classifier(seed: int, classes: int, **options) -> nn.Module:
    """iViT with a head for so many classes, its random weights those of a seed.

    Args:
        seed: of the weights.
        classes: how many there are.
        options: further arguments of the backbone.
    """
    import timm

    set_random_seed(seed)
    return timm.create_model(f'ivit_{ARCH}', num_classes=classes, **options)


class PooledClassifier(nn.Module):
    """Any backbone's last map, averaged over its places, and a linear layer.

    Args:
        backbone: images (B, 3, H, W) -> maps, of which the last is (B, C, H', W').
        width: C.
        classes: how many there are.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.backbone(images)[-1].mean((2, 3)))  # (B, C, H', W') -> (B, C)


def train_classifier(
    model: nn.Module, root: Path, seed: int, iterations: int, val_interval: int = 0
) -> dict[str, float]:
    """Train a classifier with AdamW, batches of BATCH, one cycle of the learning rate.

    Args:
        model: left in evaluation mode.
        root: folder of the data set.
        seed: of the images' order.
        iterations: length of training.
        val_interval: iterations between evaluations; none if 0.

    Returns:
        Held-out accuracy, percent, by iteration.
    """
    from timm.optim import create_optimizer_v2

    set_random_seed(seed)
    scores = {}
    optimizer = create_optimizer_v2(model, 'adamw', lr=LEARNING_RATE, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, iterations, pct_start=0.1)
    batches = _endless(_loader(root, 'train', training=True))
    progress = tqdm(range(1, iterations + 1), desc='classification')
    for iteration, (images, labels) in zip(progress, batches):
        loss = F.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if val_interval and iteration % val_interval == 0:
            scores[str(iteration)] = held_out_accuracy(model, root)
    model.eval()
    return scores


@torch.no_grad()
def held_out_accuracy(model: nn.Module, root: Path) -> float:
    """Percentage of a data set's validation images that a classifier tells right."""
    model.eval()
    right = [
        (model(images).argmax(1) == labels)
        for images, labels in _loader(root, 'validation', training=False)
    ]
    return 100 * torch.cat(right).float().mean().item()


def held_out_images(root: Path, count: int) -> Tensor:
    """Some of a data set's validation images, (count, 3, H, W), as a classifier sees them."""
    dataset = _loader(root, 'validation', training=False).dataset
    # From all over the folders, which come one class after another.
    return torch.stack([dataset[i * len(dataset) // count][0] for i in range(count)])


def count_classes(root: Path) -> int:
    """How many folders of images there are to tell apart."""
    return sum(path.is_dir() for path in (root / 'train').iterdir())


def _loader(root: Path, split: str, training: bool) -> DataLoader:
    from timm.data import create_dataset, create_transform

    dataset = create_dataset('', str(root), split=split, is_training=training)
    size = dataset[0][0].size[0]
    # Flips only: crops and colours would change what makes a class.
    dataset.transform = create_transform(
        size, is_training=training, scale=(1, 1), ratio=(1, 1), color_jitter=None, crop_pct=1.0
    )
    return DataLoader(dataset, batch_size=BATCH, shuffle=training, drop_last=training)


def _endless(loader: DataLoader) -> Iterable:
    while True:
        yield from loader
