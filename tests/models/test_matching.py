import torch

from mrcnn_cli.models.matching import ROI_STREAM, RPN_STREAM, generator, sample
from mrcnn_cli.structures import Targets


def target(seed):
    return Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), seed=seed)


MATCHED = torch.tensor([3, -1, -2, 0, -1, -1, -2, 1, -1, -1])  # 3 positives, 5 negatives, 2 ignored


def test_everything_takes_part_where_the_batch_is_large_enough():
    positives, negatives = sample(MATCHED, 100, 0.5, torch.Generator().manual_seed(0))
    assert positives.tolist() == [0, 3, 7]
    assert negatives.tolist() == [1, 4, 5, 8, 9]


def test_positives_are_limited_and_negatives_fill_up():
    positives, negatives = sample(MATCHED, 6, 0.34, torch.Generator().manual_seed(0))
    assert len(positives) == 2
    assert len(negatives) == 4
    assert set(positives.tolist()) < {0, 3, 7}
    assert set(negatives.tolist()) < {1, 4, 5, 8, 9}


def test_every_candidate_is_as_likely():
    counts = torch.zeros(10)
    random = torch.Generator().manual_seed(0)
    for _ in range(4000):
        positives, negatives = sample(MATCHED, 2, 0.5, random)
        counts[torch.cat([positives, negatives])] += 1
    assert torch.allclose(counts[[0, 3, 7]] / 4000, torch.tensor(1 / 3), atol=0.04)
    assert torch.allclose(counts[[1, 4, 5, 8, 9]] / 4000, torch.tensor(1 / 5), atol=0.04)
    assert counts[[2, 6]].sum() == 0


def test_the_draw_depends_on_the_image_and_the_stream_only():
    def draw(seed, stream):
        return torch.rand(4, generator=generator(target(seed), stream)).tolist()

    assert draw(7, RPN_STREAM) == draw(7, RPN_STREAM)
    assert len({tuple(draw(seed, stream)) for seed in (7, 8) for stream in (RPN_STREAM, ROI_STREAM)}) == 4
