"""One step of IDC and of IDM as the published scripts compute it: what their users run today.

Written from the papers' algorithm, eager, float32, one class after another, and kept plain on
purpose: a second-order graph by `torch.autograd`, networks that are not frozen (their gradients
are computed on the way to the images and thrown away), one forward pass per use, IDM's live queue
of networks. It shares no arithmetic with `moedd`: that makes it an oracle for the engine's
gradients as well as the clock's other hand.

Images are float32 (n, C, H, W); `ops` are an augmentation's drawn parameters, (family, tensors) in
order of application, each tensor of shape (1,) (shared) or (n,).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Ops = Sequence[tuple[str, tuple[Tensor, ...]]]


class ConvNet(nn.Module):
    """ConvNet-D: [3x3 convolution, group norm of one channel per group, ReLU, 2x2 mean] x depth."""

    def __init__(
        self, width: int = 128, depth: int = 3, channels: int = 3, side: int = 32, classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for d in range(depth):
            layers += [nn.Conv2d(channels if d == 0 else width, width, 3, padding=1)]
            layers += [nn.GroupNorm(width, width, affine=True), nn.ReLU(), nn.AvgPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (side // 2**depth) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embed(x))


# -- augmentation, one operation after another, through index grids and masks --------------------


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + _column(brightness)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * _column(saturation) + grey
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * _column(contrast) + mean


def crop(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, _, height, width = x.shape
    batch, y, z = torch.meshgrid(
        torch.arange(n), torch.arange(height), torch.arange(width), indexing="ij"
    )
    y = (y + rows.view(-1, 1, 1) + 1).clamp(0, height + 1)
    z = (z + columns.view(-1, 1, 1) + 1).clamp(0, width + 1)
    framed = F.pad(x, [1, 1, 1, 1])
    return framed.permute(0, 2, 3, 1).contiguous()[batch, y, z].permute(0, 3, 1, 2)


def cutout(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    n, _, height, width = x.shape
    hole = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    batch, y, z = torch.meshgrid(
        torch.arange(n), torch.arange(hole[0]), torch.arange(hole[1]), indexing="ij"
    )
    y, z = y + rows.view(-1, 1, 1) - hole[0] // 2, z + columns.view(-1, 1, 1) - hole[1] // 2
    # Places beyond the border are cut off, not moved to it.
    inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
    mask = torch.ones(n, height, width, dtype=x.dtype)
    mask[batch.expand_as(y)[inside], y.expand_as(batch)[inside], z.expand_as(batch)[inside]] = 0
    return x * mask.unsqueeze(1)


def flip(x: Tensor, mirror: Tensor) -> Tensor:
    return torch.where(_column(mirror), x.flip(3), x)


def _warp(x: Tensor, theta: list[list[Tensor]]) -> Tensor:
    matrix = torch.stack([torch.stack(row, dim=-1) for row in theta], dim=1).to(x.dtype)
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def scale(x: Tensor, sx: Tensor, sy: Tensor) -> Tensor:
    zero = torch.zeros_like(sx)
    return _warp(x, [[sx, zero, zero], [zero, sy, zero]])


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warp(x, [[cos, -sin, zero], [sin, cos, zero]])


_OPERATIONS = {
    "color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate
}  # fmt: skip


def augment(x: Tensor, ops: Ops) -> Tensor:
    """Apply the drawn operations in order."""
    for family, values in ops:
        x = _OPERATIONS[family](x, *values)
    return x


# -- shared pieces --------------------------------------------------------------------------------


def tiles(stored: Tensor, factor: int, column_major: bool) -> Tensor:
    """Cut each image into factor^2 cells, enlarge every cell to the whole size, cell-major."""
    if factor == 1:
        return stored
    side = stored.shape[-1] // factor
    cells = []
    for first in range(factor):
        for second in range(factor):
            row, column = (second, first) if column_major else (first, second)
            cells.append(
                stored[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
            )
    return F.interpolate(torch.cat(cells), size=stored.shape[-2:], mode="bilinear")


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    view = (1, -1, 1, 1)
    return (x - torch.tensor(mean, dtype=x.dtype).view(view)) / torch.tensor(
        std, dtype=x.dtype
    ).view(view)


def network_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One ordinary training step."""
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    optimizer.step()


def cutmix_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, lam: float
) -> None:
    """One training step with the permuted batch's box pasted in; `lam` is the area kept."""
    permuted = torch.randperm(len(x))
    cut = int(x.shape[-1] * (1 - lam) ** 0.5)
    cy, cx = (int(torch.randint(side, ())) for side in x.shape[-2:])
    top, bottom = max(cy - cut // 2, 0), min(cy + cut // 2, x.shape[-2])
    left, right = max(cx - cut // 2, 0), min(cx + cut // 2, x.shape[-1])
    x[..., top:bottom, left:right] = x[permuted][..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (x.shape[-1] * x.shape[-2])
    logits = net(x)
    loss = F.cross_entropy(logits, y) * kept + F.cross_entropy(logits, y[permuted]) * (1 - kept)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def score(net: nn.Module, x: Tensor, y: Tensor, batch: int = 256) -> float:
    """Share of right answers, a batch and a host read at a time."""
    net.eval()
    right = 0.0
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):
        right += float((net(images).argmax(1) == labels).float().mean()) * len(images)
    net.train()
    return right / len(x)


# -- IDC ------------------------------------------------------------------------------------------


def idc_class_loss(
    net: nn.Module, real: Tensor, stored: Tensor, label: int, ops: Ops,
    mean: Sequence[float], std: Sequence[float], factor: int = 2,
) -> Tensor:  # fmt: skip
    """Squared distance of the convolutions' gradients; `real` and `stored` in unit space."""
    both = torch.cat([real, tiles(stored, factor, column_major=False)])
    both = augment(normalize(both, mean, std), ops)
    x, q = both[: len(real)], both[len(real) :]
    parameters = list(net.parameters())
    wanted = torch.autograd.grad(F.cross_entropy(net(x), torch.full((len(x),), label)), parameters)
    given = torch.autograd.grad(
        F.cross_entropy(net(q), torch.full((len(q),), label)), parameters, create_graph=True
    )
    loss = torch.zeros((), dtype=stored.dtype)
    for a, b in zip(wanted, given, strict=True):
        if a.ndim == 4:
            loss = loss + (a.detach() - b).square().sum()
    return loss


def idc_class_step(
    net: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer, rows: slice, real: Tensor,
    label: int, ops: Ops, mean: Sequence[float], std: Sequence[float], factor: int = 2,
) -> float:  # fmt: skip
    """One class's update of the shared leaf `images`."""
    loss = idc_class_loss(net, real, images[rows], label, ops, mean, std, factor)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# -- IDM ------------------------------------------------------------------------------------------


def idm_class_loss(
    net: ConvNet, real: Tensor, stored: Tensor, label: int, ops: Ops, weight: float,
    factor: int = 2,
) -> Tensor:  # fmt: skip
    """Squared distance of feature means plus weighted cross-entropy; images normalised."""
    wanted = net.embed(augment(real, ops)).detach()
    q = augment(tiles(stored, factor, column_major=True), ops)
    match = (wanted.mean(dim=0) - net.embed(q).mean(dim=0)).square().sum()
    entropy = F.cross_entropy(net(q), torch.full((len(q),), label))
    return match + weight * entropy


def idm_class_step(
    net: ConvNet, images: Tensor, optimizer: torch.optim.Optimizer, rows: slice, real: Tensor,
    label: int, ops: Ops, weight: float, factor: int = 2,
) -> float:  # fmt: skip
    """One class's update of the shared leaf `images`."""
    loss = idm_class_loss(net, real, images[rows], label, ops, weight, factor)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_queue(
    nets: Sequence[tuple[nn.Module, torch.optim.Optimizer]], images: Tensor, labels: Tensor,
    rows: Tensor, steps: int = 10, batch: int = 256,
) -> None:  # fmt: skip
    """IDM's upkeep of its queue: `steps` plain batches for each of the fetched networks, out of the
    `rows` of the data set, all of which are permuted for every batch."""
    for net, optimizer in nets:
        for _ in range(steps):
            chosen = rows[torch.randperm(len(rows))[:batch]]
            network_step(net, optimizer, images[chosen], labels[chosen])


# -- the diversity step ---------------------------------------------------------------------------


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Biased squared distance correlation of paired rows, by doubly centred distance matrices."""

    def centred(z: Tensor) -> Tensor:
        d = torch.cdist(z, z)
        return d - d.mean(0, keepdim=True) - d.mean(1, keepdim=True) + d.mean()

    a, b = centred(x.flatten(1)), centred(y.flatten(1))
    return (a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt()


def diversity_step(net: ConvNet, first: Tensor, second: Tensor, lr: float) -> None:
    """Move two experts' stored images (normalised, factor 2) down their dependence."""
    leaves = [t.detach().requires_grad_() for t in (first, second)]
    sides = [net.embed(tiles(leaf, 2, column_major=True)) for leaf in leaves]
    distance_correlation(*sides).backward()
    with torch.no_grad():
        for stored, leaf in zip((first, second), leaves, strict=True):
            stored -= lr * leaf.grad
