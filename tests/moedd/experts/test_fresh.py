"""Fresh networks and first images of the DC family."""

import torch
from enginefactories import make_pool, random_data

from moedd.experts.fresh import fresh_network, real_images
from moedd.parts import whole
from moedd.streams import Streams


def test_a_fresh_network_has_the_architecture_and_parameters_of_its_own() -> None:
    like = make_pool(whole(random_data())).network
    one, same, other = (
        fresh_network(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    shapes = {name: p.shape for name, p in like.named_parameters()}
    assert {name: p.shape for name, p in one.named_parameters()} == shapes
    first = [net.body[0].weight for net in (one, same, other, like)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[3])
    assert all(p.requires_grad for p in one.parameters())


def test_first_images_are_different_real_images_of_their_class() -> None:
    part = whole(random_data((7, 5)))
    images = real_images(part, 4, Streams(0))
    for c in range(2):
        of_class = part.normalized(part.rows[c])
        found = [
            next(k for k, x in enumerate(of_class) if torch.equal(x, image))
            for image in images[4 * c : 4 * c + 4]
        ]
        assert len(set(found)) == 4
    assert torch.equal(images, real_images(part, 4, Streams(0)))
    assert not torch.equal(images, real_images(part, 4, Streams(1)))
    # A class with fewer images than asked for is gone through again.
    many = real_images(part, 6, Streams(0))[6:]
    assert torch.equal(many[5], many[0])
