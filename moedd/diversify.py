"""The diversity step of a mixture: push two experts' images apart under a pool network.

Source: method step 4 and Eq. 2-3. The step is plain SGD, apart from the experts' own momentum, and
its length is a stated ratio of the expert's last image step; both norms are logged.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moedd.arithmetic import arithmetic
from moedd.diversity import DiversityConfig, DiversityLoss, draw_pairs, weight_for_ratio
from moedd.diversityreport import diversity_report
from moedd.experts import Expert
from moedd.pool import Pool, StoredNetwork
from moedd.profile import Profile
from moedd.ranks import world
from moedd.streams import Streams
from moedd_loaders.decode import decode_labels
from moedd_loaders.errors import NonFiniteError
from moedd_loaders.manifest import Diversity


def features(
    pool: Pool,
    network: StoredNetwork,
    images: Tensor,
    layer: str,
    profile: Profile | None = None,
) -> Tensor:
    """Features (n, d) of normalised images under a stored network, with a graph to the images.

    Where the images are too many to go through at once, what their graph needs is not kept but
    computed again, batch by batch, when it is asked for.
    """
    profile = (profile or Profile()).for_work(0)
    functions = arithmetic(pool.network, profile)

    def of(batch: Tensor) -> Tensor:
        embedding, logits = functions.features(network.parameters, batch)
        return embedding if layer == "embedding" else logits

    most = profile.images_at_once(pool.network.size)
    if len(images) <= most:
        return of(images)
    if not images.requires_grad:
        return torch.cat([of(batch) for batch in images.split(most)])
    # A graph keeps about three times what a plain pass holds at once.
    return torch.cat(
        [
            checkpoint(of, batch, use_reentrant=False, preserve_rng_state=False)
            for batch in images.split(max(1, most // 3))
        ]
    )


def diversity_step(
    experts: Sequence[Expert], config: DiversityConfig, streams: Streams
) -> list[dict[str, Any]]:
    """One diversity step on the drawn pair(s); returns one log row per pair.

    Experts without steps of their own stay as they are while their partner moves. Where the two
    are not on the same ranks, their features travel; each rank moves the images of its own expert,
    and its row has the norms of that one only.
    """
    rows = []
    for i, j in draw_pairs(config, len(experts), streams.generator("pair")):
        own = streams.scope(i, j)
        pair = (experts[i], experts[j])
        if not any(expert.team.here for expert in pair):
            continue
        for expert in pair:
            if expert.team.here:
                expert.pull()
        # With a pool for each expert, the features are now of one's, now of the other's.
        side = int(torch.randint(2, (), generator=own.generator("side")))
        pool = pair[side].pool
        network = pool.draw(own.generator("network"))
        leaves = [
            e.images.detach().clone().requires_grad_(e.steps > 0 and e.team.here) for e in pair
        ]
        labels = [decode_labels(e.labels, e.decode_rule) for e in pair]
        sides = _features_of(pair, leaves, pool, network, config.layer)
        try:
            loss, record = DiversityLoss(config)(
                sides[0], labels[0], sides[1], labels[1], own.generator("rows")
            )
        except NonFiniteError as error:
            raise _astray(pair, sides) from error
        row: dict[str, Any] = {
            "pair": [i, j],
            "biased": record.biased,
            "unbiased": record.unbiased,
            "floor": record.floor,
            "n": record.n,
            "value": record.value,  # what was minimised, before clamping
        }
        moving = [leaf for leaf in leaves if leaf.requires_grad]
        if moving and loss.requires_grad:
            gradients = iter(torch.autograd.grad(loss, moving))
            for expert, leaf in zip(pair, leaves, strict=True):
                if leaf.requires_grad:
                    row |= _move(expert, next(gradients), config)
        if any(expert.team.first for expert in pair):
            rows.append(row)
    return rows


def _features_of(
    pair: Sequence[Expert],
    leaves: Sequence[Tensor],
    pool: Pool,
    network: StoredNetwork,
    layer: str,
) -> list[Tensor]:
    """Features of both experts' training images: with a graph where they are made here, else as
    their first rank sends them."""
    made = [
        features(pool, network, expert.training_images(leaf), layer, expert.profile)
        if expert.team.here
        else None
        for expert, leaf in zip(pair, leaves, strict=True)
    ]
    ranks = world()
    for n, (expert, other) in enumerate((pair, pair[::-1])):
        strangers = [rank for rank in other.team.members if rank not in expert.team.members]
        own = made[n]
        if own is None:
            like = made[1 - n]
            assert like is not None
            rows = len(decode_labels(expert.labels, expert.decode_rule))
            source = expert.team.members[0]
            made[n] = ranks.receive(like.new_empty(rows, *like.shape[1:]), source)
        elif expert.team.first:
            for rank in strangers:
                ranks.send(own.detach(), rank, "features")
    return [side for side in made if side is not None]


def _astray(pair: Sequence[Expert], sides: Sequence[Tensor]) -> NonFiniteError:
    """The error where features are not finite: whose, when, and what to do."""
    broken = [e for e, side in zip(pair, sides, strict=True) if not side.isfinite().all()]
    who = " and ".join(
        f"expert {e.part.index} ({e.method}) after its step {e.done} of {e.steps}" for e in broken
    )
    return NonFiniteError(
        f"the diversity step got features that are NaN or infinite from the images of {who}: "
        f"{broken[0].remedy}"
    )


def _move(expert: Expert, gradient: Tensor, config: DiversityConfig) -> dict[str, float]:
    """Move one expert's images; returns its norms: image step, diversity gradient, step made."""
    norm = float(gradient.norm())
    if config.ratio is None:
        weight = 1.0  # the loss, and with it the gradient, carries `config.weight` already
    else:
        weight = weight_for_ratio(
            norm, expert.last_step_norm, ratio=config.ratio, lr=expert.image_lr
        )
    # Not even zero times a broken gradient may reach the images.
    if weight > 0 and math.isfinite(norm):
        expert.images.sub_(gradient, alpha=expert.image_lr * weight)
    e = expert.part.index
    return {
        f"image_step_{e}": expert.last_step_norm,
        f"diversity_gradient_{e}": norm,
        f"diversity_step_{e}": expert.image_lr * weight * norm,
        f"weight_{e}": weight,
    }


@torch.no_grad()
def report(
    experts: Sequence[Expert], config: DiversityConfig, streams: Streams
) -> Diversity | None:
    """Dependence between the finished experts under the oldest network of the first one's pool.

    Of all pairs, whichever the diversity step drew. None for a single expert, or where there are
    too few images for the unbiased value.
    """
    if len(experts) < 2:
        return None
    pool = experts[0].pool
    oldest = max(pool.stored, key=lambda stored: stored.steps)
    sets, labels = [], []
    for expert in experts:
        images, classes = expert.decoded()
        sets.append(features(pool, oldest, images, config.layer))
        labels.append(classes)
    return diversity_report(sets, labels, streams.scope("report"), config)
