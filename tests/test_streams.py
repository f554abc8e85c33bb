"""Streams are told apart by seed and name, and repeat."""

import numpy as np
import torch

from hsae.streams import Stream


def test_a_stream_repeats_and_differs_from_any_other():
    streams = [Stream(seed, name) for seed in (0, 1, 10) for name in ("a", "b", "0/a")]
    assert len({stream.number for stream in streams}) == len(streams)
    assert len({stream.of("part").number for stream in streams} | {stream.number for stream in streams}) == 18
    drawn = [torch.rand(4, generator=stream.torch()) for stream in streams for _ in range(2)]
    assert all((a == b).all() for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({tuple(values.tolist()) for values in drawn}) == len(streams)
    assert (streams[0].numpy().random(3) == streams[0].numpy().random(3)).all()


def test_the_number_is_that_of_the_hash_and_fits_all_generators():
    stream = Stream(7, "weights")
    assert stream.number == 0xBC9B905A
    assert stream.of("level 1") == Stream(7, "weights/level 1")
    np.random.RandomState(stream.number)  # refuses what is larger


def test_seeding_leaves_the_global_generator_where_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with Stream(0, "weights").seeding():
        inside = torch.rand(2)
    assert (torch.rand(2) == expected).all()
    assert (inside == torch.rand(2, generator=Stream(0, "weights").torch())).all()
